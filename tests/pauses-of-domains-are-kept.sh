#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine of libvirt stands still, and the comparison that the pause is for does not come to its end: at twice
# --max-pause it goes on where it was, on one host and between two; so it does if blockmig is killed meanwhile.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
emulator=$tmp/run-qemu blockmigd=$tmp/run-agent
# Whoever compares asks the machine itself whether it stands still.
cat >"$emulator" <<END
#!/bin/sh
case "\$*" in *guest=web,*) set -- "\$@" -qmp "unix:$tmp/qmp-\$(hostname),server=on,wait=off" ;; esac
exec /usr/bin/qemu-system-x86_64 "\$@"
END
# waits HOST PROGRAM: what the programs that compare are called by, while the machine is on that host.
waits()
{
    printf '#!/bin/sh\nexport WAITING_READS=%s WAITING_QMP=%s LD_PRELOAD=%s\nexec %s "$@"\n' "$tmp/wait" "$tmp/qmp-$1" \
        "$builddir/tests/helpers/waiting-reads.so" "$2"
}
waits one "$builddir/tools/blockmigd" >"$blockmigd"
waits one "$blockmig" >"$tmp/run-blockmig"
must chmod 755 "$emulator" "$blockmigd" "$tmp/run-blockmig"
two_hosts
must mkdir "$tmp/one/srv/other"
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 64M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=8M flush=32 log=1'

# go COMMAND ARGUMENTS...: of blockmig on the host one; the limit is large against every pause that does not wait.
go()
{
    on one timeout 200 "$tmp/run-blockmig" "$@" --delete-source --json -v --max-pause=2s
}

# moves ARGUMENTS OF go...: in the background; $pid
moves()
{
    : >"$tmp/err"
    go "$@" >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
    pid=$!
}

# is_as_before SAY
is_as_before()
{
    is "$(running_on web)$(domain_file one web)" "one /srv/store/disk.qcow2" "$1: the machine runs where it was"
    is "$(files "$tmp/one/srv/store")$(files "$tmp/one/srv/other")$(files "$tmp/two/srv/store")" "disk.qcow2 " \
        "$1: nothing is left of it"
    is "$(domain_verdict one web)" OK "$1: it misses nothing"
    must domain_cmd one web start
}

paused()
{
    [ "$(on one virsh domstate web | head -n 1)" = paused ]
}

runs()
{
    [ "$(running_on web)" = "one " ]
}

# gives_up SAY COMMAND ARGUMENTS...: each pause waits.
gives_up()
{
    local say=$1
    shift
    must touch "$tmp/wait"
    moves "$@"
    wait $pid
    is "$?" 4 "$say: rolled back" || diag "$(cat "$tmp/err")"
    like "$(jq -r .error "$tmp/out")" "more than twice the 2000 ms of --max-pause: given up after [4-9]... ms" \
        "$say: the pause and the limit are told"
    is "$(grep -c 'the switch is tried again' "$tmp/err")" 2 "$say: after it was tried again"
    is_as_before "$say"
}

# without_libvirt: until after the pause should have ended.
without_libvirt()
{
    wait_for 60 paused || diag "it never stood still: $(cat "$tmp/err")"
    on one pkill -KILL -x libvirtd
    sleep 5
    libvirt_up one
}

# gives_up_once SAY MEANWHILE COMMAND ARGUMENTS...: only the first pause waits.
gives_up_once()
{
    local say=$1 meanwhile=$2
    shift 2
    must touch "$tmp/wait"
    moves "$@"
    $meanwhile
    wait_for 60 grep -q 'the switch is tried again' "$tmp/err"
    must rm "$tmp/wait"
    wait $pid
    is "$?" 0 "$say: a pause is given up, and the next one is not" || diag "$(cat "$tmp/err")"
    like "$(cat "$tmp/err")" "more than twice the 2000 ms .* the machine runs on where it was" "$say: which is told"
    out=$(cat "$tmp/out")
}

# killed SAY COMMAND ARGUMENTS...: in such a pause.
killed()
{
    local say=$1
    shift
    must touch "$tmp/wait"
    moves "$@"
    wait_for 60 paused || diag "it never stood still: $(cat "$tmp/err")"
    on one pkill -KILL -x blockmig
    wait $pid
    wait_for 30 runs
    is "$(running_on web)" "one " "$say: blockmig is killed in such a pause, and the machine runs on"
    must rm "$tmp/wait"
}

# is_there SAY HOST FILE: $out is the report.
is_there()
{
    local say=$1 host=$2 file=$3
    is "$(jq -c '[.result, .pause_ms > 0, .pause_forecast_ms > 0, .max_pause_ms, .pause_kept]' <<<"$out")" \
        '["done",true,true,2000,true]' "$say: the report has the pause, its forecast, and that it was kept"
    is "$(running_on web)$(domain_file "$host" web)" "$host $file" "$say: it is there"
    is "$(domain_verdict "$host" web)" OK "$say: it misses nothing"
    must domain_cmd "$host" web start
}

# ---- between two hosts ------------------------------------------------------------------------------

live=(migrate web blockmig://192.0.2.2)
gives_up live "${live[@]}"
killed live "${live[@]}"
run go "${live[@]}"
is "$status" 0 "live: without the delay the same command ends it" || diag "$err"
is_there live two /srv/store/disk.qcow2

# The way back compares by blockmig and the agent of the host one, which do not wait for the machine on the host two.
run on two timeout 200 "$blockmig" migrate web blockmig://192.0.2.1 --method=quick --delete-source --json --max-pause=1ms
is "$status" 0 "quick has no limit" || diag "$err"
like "$err" "--max-pause=1ms is no limit of the method quick" "which is told"
is "$(jq -c '[.max_pause_ms, .pause_kept]' <<<"$out")" '[1,false]' "and that the pause was longer"

# ---- on one host ------------------------------------------------------------------------------------

move=(move web /srv/other)
[ "${BLOCKMIG_LONG:-0}" != 1 ] || gives_up move "${move[@]}"
killed move "${move[@]}"
gives_up_once move without_libvirt "${move[@]}"
is_there move one /srv/other/disk.qcow2

# ---- what cannot fit --------------------------------------------------------------------------------

run on one timeout 200 "$blockmig" move web /srv/store --delete-source --json --max-pause=1ms
is "$status" 4 "a pause that is expected to be longer does not begin" || diag "$err"
like "$err" "a pause would take [0-9]+ ms, and --max-pause allows 1 ms" "which is told"
is "$(running_on web)$(domain_file one web)" "one /srv/other/disk.qcow2" "the machine runs where it was"
run on one timeout 200 "$blockmig" move web /srv/store --delete-source --json --max-pause=1ms --on-busy=mirror
is "$status" 0 "with --on-busy=mirror it goes without a pause" || diag "$err"
is "$(jq -c '[.on_busy, .pause_ms, .pause_kept]' <<<"$out")" '["mirror",null,null]' "and the report says so"
is "$(domain_verdict one web)" OK "and it misses nothing"
run on one "$blockmig" plan move web /srv/other --max-pause=70ms
like "$out" "pause: at most 70 ms, and given up after twice that" "the plan tells the limit"
done_testing
