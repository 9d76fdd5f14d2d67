#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The method san: a machine's LUN is reserved by the host where it runs, and no other host can write to it from the
# moment of the switch on, whatever happens to blockmig.  The LUN is a loop device to which
# tests/helpers/reserving-device.c adds what a kernel does for one with persistent reservations.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool losetup
need_free 2G
units='/dev/loop*'

must truncate -s 48M "$tmp/lun"
loop_device "$tmp/lun"
device=$REPLY
log=$tmp/reserved.log

# preloaded NAME PROGRAM: it, on hosts whose kernels know reservations; sets REPLY.
preloaded()
{
    printf '#!/bin/sh\nexport RESERVING_DEVICE=%s RESERVING_STATE=%s\nexport LD_PRELOAD=%s"${PRELOAD_MORE:-}"\nexec %s "$@"\n' \
        "$device" "$tmp/reserved" "$builddir/tests/helpers/reserving-device.so" "$2" >"$tmp/$1"
    must chmod 755 "$tmp/$1"
    REPLY=$tmp/$1
}
preloaded run-blockmig "$builddir/tools/blockmig"
blockmig=$REPLY
preloaded run-blockmigd "$builddir/tools/blockmigd"
blockmigd=$REPLY
preloaded run-qemu /usr/bin/qemu-system-x86_64
emulator=$REPLY
preloaded run-dd "$(type -P dd)"
writes=$REPLY
two_hosts

# holder: the host that holds the LUN
holder()
{
    local key
    key=$(on one "$blockmig" reservation show --json "$device" | jq -r .holder)
    for host in one two; do
        [ "$(on $host "$blockmig" reservation show --json "$device" | jq -r .key)" != "$key" ] || echo $host
    done
}

# can_write HOST: behind what the guest uses
can_write()
{
    on "$1" "$writes" if=/dev/zero "of=$device" bs=4096 count=1 seek=10000 oflag=direct conv=notrunc status=none
}

# owned_by HOST WHAT: runs there, is defined there, and only that one may write.
owned_by()
{
    local other=one
    [ "$1" = two ] || other=two
    is "$(running_on web)$(defined_on web)$(holder)" "$1 $1 $1" "$2: it is on that host alone, which holds the LUN"
    check "$2: which may write" can_write "$1"
    fails_with 1 "$2: and the other may not" can_write "$other"
    is "$(domain_verdict "$1" web)" OK "$2: the guest misses nothing"
    must domain_cmd "$1" web start
}

start_domain one web --on "block:<source dev='$device'/>" --append 'rate=200 span=16M flush=32 log=1'

run on one "$blockmig" plan migrate web blockmig://192.0.2.2
is "$status" 0 "a plan" || diag "$err"
like "$out" "method san: " "chooses san"
like "$out" "$device is reserved by this host, the target registers; .*preempts" "and says how"
check "and changes nothing" test ! -s "$log"

migrate one web blockmig://192.0.2.2 --json
is "$status" 0 "san: the machine is brought to the other host" || diag "$err"
is "$(jq -c '[.method, (.disks | length)]' <<<"$out")" '["san",0]' "without a copy"
diag "pause $(jq .pause_ms <<<"$out") ms"
is "$(paste -sd, "$log")" "one register,one reserve,two register,two register,two abort" \
    "reserved here, registered there, preempted with the commands aborted"
owned_by two "san"
unlike "$(grep -v '^one' "$log")" "conflict" "that host never met a conflict"

migrate two web blockmig://192.0.2.1 --method=live --json
is "$status" 0 "live, of a LUN that is reserved" || diag "$err"
owned_by one "live"

# ---- what fails -----------------------------------------------------------------------------------------

migrate one web blockmig://192.0.2.2 --method=restart --shutdown-timeout=2s
is "$status" 4 "a guest that does not shut down is left running" || diag "$err"
owned_by one "rolled back"
is "$(on one "$blockmig" reservation show --json "$device" | jq '.registrants | length')" 1 \
    "no registration of the other host is left"

# ---- blockmig is killed ------------------------------------------------------------------------------

# killed_at COMMIT FROM ADDRESS: right after that commit of the journal, if there are so many.
killed_at()
{
    run on "$2" env PRELOAD_MORE=":$builddir/tests/helpers/kill-at-commit.so" KILL_AT_COMMIT="$1" \
        timeout 200 "$blockmig" migrate web "blockmig://$3" --method=san
}

declare -A address=([one]=192.0.2.1 [two]=192.0.2.2) other=([one]=two [two]=one)
from=one
pick '11 13' "$(seq -s' ' 3 30)"
for commit in $REPLY; do
    to=${other[$from]}
    killed_at "$commit" "$from" "${address[$to]}"
    state=$(on "$from" "$blockmig" job list --json | jq -r '.jobs[0] | .phase + " " + .state')
    diag "commit $commit: $state, runs on $(running_on web)"
    if [ "$state" = "done done" ]; then # there is nothing to be taken up any more
        owned_by "$to" "commit $commit, the last"
        from=$to
        break
    fi
    check "commit $commit: killed there, it does not run on both" test "$(running_on web)" != "one two "
    migrate "$from" web "blockmig://${address[$to]}" --method=san
    is "$status" 0 "commit $commit: the same command brings it to the other host" || diag "$err"
    owned_by "$to" "commit $commit"
    from=$to
done

# ---- one that is off -----------------------------------------------------------------------------------

must on "$from" virsh -q destroy web
to=${other[$from]}
third=(unshare -u sh -c 'hostname three; exec "$@"' sh "$blockmig" reservation)
must "${third[@]}" take --force "$device"
migrate "$from" web "blockmig://${address[$to]}"
is "$status" 3 "a LUN that a third host holds" || diag "$err"
like "$err" "$device is reserved by another host" "is refused"
must "${third[@]}" release "$device"
migrate "$from" web "blockmig://${address[$to]}" --json
is "$status" 0 "one that is off goes, too" || diag "$err"
is "$(jq -r .method <<<"$out") $(running_on web)$(defined_on web)$(holder)" "san $to $to" "with its LUN"
start_again "$to" web
owned_by "$to" "started there"
done_testing
