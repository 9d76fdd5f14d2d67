#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# On the way back from another host anything is killed: who asked for it, who leads it there, the agent, or all that is on
# that host but libvirt: the machine runs on one host and misses nothing, and the same command ends it.  Closing the way
# back is killed at each change of a file.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
need_tool strace
use_seed
two_hosts

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'

# goes OPTIONS...: to the other host, with a way back; sets id.
goes()
{
    local n
    for n in 1 2 3; do
        migrate one web blockmig://192.0.2.2 --json --delete-source --keep-failback=1h --failback-to=blockmig://192.0.2.1/store
        [ "$status" -ne 0 ] || break
    done
    is "$status" 0 "$1: the machine goes to two" || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper_of "$id"
}

state()
{
    on one "$blockmig" job show --json "$id" | jq -r .state
}

# killed HOST PROGRAM...: and gone
killed()
{
    local host=$1 program
    shift
    for program; do
        on "$host" pkill -KILL -x "$program"
    done
    for program; do
        while on "$host" pgrep -x "$program" >/dev/null; do
            sleep 0.1
        done
    done
}

happens()
{
    case $1 in
        asking) killed one blockmig ;;
        leading) killed two blockmig ;;
        waiting) killed two blockmigd-lead ;;
        the-agent) killed two blockmigd ;;
        everything) killed two blockmigd blockmigd-lead blockmig ;;
    esac
    on two pgrep -x blockmigd >/dev/null && on two pgrep -x blockmigd-lead >/dev/null || {
        killed two blockmigd
        host_agent two 192.0.2.2
    }
}

# is_led PHASE: by whoever leads there.
is_led()
{
    grep -q "^blockmig: $1" "$tmp"/two/srv/state/led/*/log
}

nobody_leads()
{
    ! on two pgrep -x blockmig
}

# round WHAT PHASE[+SECONDS]
round()
{
    local what=$1 phase=$2 pid n
    local say="$1 killed in $2"
    rm -rf "$tmp/two/srv/state/led"
    goes "$say"
    on one timeout 200 "$blockmig" job failback "$id" -v >"$tmp/round.out" 2>"$tmp/round.err" 3>&- </dev/null &
    pid=$!
    wait_for 60 is_led "${phase%+*}" || diag "$(cat "$tmp/round.err")"
    [ "$phase" = "${phase#*+}" ] || sleep "${phase#*+}"
    happens "$what"
    wait "$pid"
    check "$say: who asked comes to an end" test $? -ne 124
    [ "$what" != asking ] || is "$(state)" failback "$say: the way back stays open"
    for n in 1 2 3; do
        job failback "$id"
        [ "$(state)" != failed-back ] || break
    done
    is "$(state)" failed-back "$say: the same command ends it" || diag "$err"
    check "$say: nobody leads it any more" nobody_leads
    is "$(running_on web)/$(defined_on web)" "one /one " "$say: the machine is there alone"
    is "$(files "$tmp/one/srv/store")/$(files "$tmp/two/srv/store")" "disk.qcow2 /" "$say: nothing else is left"
    is "$(domain_verdict one web)" OK "$say: it misses nothing"
    must domain_cmd one web start
}

cases=()
for what in asking leading waiting the-agent everything; do
    for phase in base converge switchover+0.3 switchover+0.8 prove settle cleanup; do
        cases+=("$what:$phase")
    done
done
some 1 "${cases[@]}"
for case in "${chosen[@]}"; do
    round "${case%%:*}" "${case#*:}"
done

# ---- asked to stop ------------------------------------------------------------------------------------

rm -rf "$tmp/two/srv/state/led"
goes "to be stopped"
on one timeout 200 "$blockmig" job failback "$id" -v >"$tmp/round.out" 2>"$tmp/round.err" 3>&- </dev/null &
pid=$!
wait_for 60 is_led base
on one pkill -TERM -x blockmig
wait "$pid"
case $? in
    4)
        is "$(running_on web)/$(state)" "two /failback" "what is stopped in time is rolled back there, and the way stays open"
        like "$(cat "$tmp/round.err")" 'led by .*cancelled' "and that is told"
        ;;
    *) is "$(running_on web)/$(state)" "one /failed-back" "what is stopped too late goes to its end" ;;
esac
[ "$(state)" = failed-back ] || job failback "$id"
is "$(state)" failed-back "it may be asked for again" || diag "$err"

# ---- closing ------------------------------------------------------------------------------------------

# killed_at CALL COUNT: false if the command ended before its COUNTth CALL.
killed_at()
{
    on one timeout 300 strace -qq -o /dev/null -e trace="$1" -e inject="$1:signal=SIGKILL:when=$2" \
        "$blockmig" job finish "$id" >/dev/null 2>&1 3>&-
    [ $? -ge 128 ]
}

goes "to be closed"
for ((when = 1; when < 100; when++)); do
    killed_at unlink,fdatasync "$when" || break
done
check "killed $((when - 1)) times" test "$when" -gt 2
[ "$(state)" = "done" ] || job finish "$id"
is "$(state)" "done" "closing goes on after every kill"
is "$(files "$tmp/one/srv/store")/$(files "$tmp/two/srv/store")" "/disk.qcow2 " "and the source is deleted"
is "$(domain_verdict two web)" OK "the guest misses nothing"
done_testing
