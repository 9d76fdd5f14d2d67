#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --quiesce: the guest's agent freezes it for the snapshot and for the switch; whatever happens to blockmig or to the
# agent, it does not stay frozen.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# machine NAME KERNEL-ARGUMENTS [ARGUMENTS of start_guest...]
machine()
{
    local name=$1 append=$2
    shift 2
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f qcow2 "$tmp/$name.a/disk.qcow2" 64M
    start_guest "$name" --libvirt-style --disk "$tmp/$name.a/disk.qcow2:qcow2" \
        --append "span=16M flush=64 log=1 $append" "$@"
    guest_wait_ready "$name"
}

# move NAME OPTION...
move()
{
    local name=$1
    shift
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json "$@"
}

times()
{
    grep -c "guest: $2" "$tmp/$1/console"
}

is_thawed()
{
    [ "$(times "$1" thawed)" -eq "$(times "$1" frozen)" ]
}

writes_on()
{
    local before
    before=$(guest_stats "$1" .writes)
    sleep 1
    [ "$(guest_stats "$1" .writes)" -gt "$before" ]
}

# ---- no agent ----
machine none ''
move none --quiesce=require
is "$status" 3 "without an agent --quiesce=require is refused"
like "$err" 'quiesce=require: .*the machine has no guest agent' "and says why"
is "$(files "$tmp/none.a")$(files "$tmp/none.b")" "disk.qcow2 " "nothing was changed"
move none --quiesce=try
is "$status" 0 "--quiesce=try goes on without" || diag "$err"
like "$err" 'cannot be frozen: .*no guest agent' "and says so"
is "$(jq -c '[.frozen_ms, .snapshot_frozen_ms]' <<<"$out")" "[null,null]" "no time is told"
stop_guest none

# ---- an agent that does what it is asked ----
machine good '' --agent
move good --quiesce=require
is "$status" 0 "with an agent the disk is moved" || diag "$err"
is "$(times good frozen) $(times good thawed)" "2 2" "the guest was frozen and thawed twice"
is "$(jq '.frozen_ms >= .pause_ms and .pause_ms > 0 and .snapshot_frozen_ms > 0' <<<"$out")" true "the times are told"
diag "$(jq -c '{pause_ms, frozen_ms, snapshot_frozen_ms, bytes: .disks[0].bytes_in_pause}' <<<"$out")"
is "$(jq -r '.disks[0].bytes_in_pause' <<<"$out")" 0 "a frozen guest leaves nothing for the pause"
check "the guest writes on" writes_on good
is "$(guest_verdict good)" OK "and misses nothing"
stop_guest good
like "$(host_verdict good 0 "$tmp/good.b/disk.qcow2" qcow2)" '^OK [1-9]' "the host agrees"

# ---- one that refuses ----
machine refuses 'agent_refuses=1' --agent
move refuses --quiesce=require
is "$status" 4 "freezing fails: rolled back" || diag "$err"
like "$err" 'quiesce=require: .*refused "guest-fsfreeze-freeze": failed to freeze' "and says why"
is "$(files "$tmp/refuses.a")$(files "$tmp/refuses.b")" "disk.qcow2 " "nothing is left of it"
move refuses --quiesce=try
is "$status" 0 "with try it goes on without" || diag "$err"
like "$err" 'goes on without freezing .*failed to freeze' "and says so"
is "$(times refuses frozen)" 0 "it was not frozen"
is "$(guest_verdict refuses)" OK "the guest misses nothing"
stop_guest refuses

# ---- blockmig dies or hangs while the guest is frozen ----
is_frozen()
{
    [ "$(times "$1" frozen)" -ge "$2" ]
}

# begin NAME COUNT: a move in the background, in the moment in which the guest is frozen the COUNTth time; sets pid.
begin()
{
    "$builddir/tools/blockmig" move "qmp:$tmp/$1/qmp" "$tmp/$1.b" "${patient[@]}" --json --quiesce=require \
        >"$tmp/$1.json" 2>"$tmp/$1.err" 3>&- </dev/null &
    pid=$!
    wait_for 60 is_frozen "$1" "$2" || not_ok "$1: the guest is frozen"
}

# given_up: the newest job is cancelled.
given_up()
{
    run_ok "the job is given up" blockmig job cancel "$(blockmig job list --json | jq -r '.jobs[0].job')"
}

machine killed 'agent_delay=2000' --agent
begin killed 1
kill -KILL "$pid"
wait "$pid" 2>/dev/null
wait_for 20 is_thawed killed
check "SIGKILL at the snapshot: the guest is thawed" is_thawed killed
check "and writes on" writes_on killed
given_up
begin killed 3
kill -KILL "$pid"
wait "$pid" 2>/dev/null
wait_for 20 is_thawed killed
check "SIGKILL at the switch: the guest is thawed" is_thawed killed
check "and writes on" writes_on killed
given_up
is "$(files "$tmp/killed.a")$(files "$tmp/killed.b")" "disk.qcow2 " "nothing is left"
is "$(guest_verdict killed)" OK "the guest misses nothing"
stop_guest killed

machine hangs '' --agent
begin hangs 2
kill -STOP "$pid"
sleep 11
kill -CONT "$pid"
wait "$pid"
status=$?
# It may have come through before the signal.
if [ "$status" -ne 0 ]; then
    is "$status" 4 "longer than 10 s: rolled back" || diag "$(cat "$tmp/hangs.err")"
    like "$(cat "$tmp/hangs.err")" 'quiesce=require: ' "and says why"
    is "$(files "$tmp/hangs.a")$(files "$tmp/hangs.b")" "disk.qcow2 " "nothing is left of it"
fi
diag "$(cat "$tmp/hangs.err")"
check "the guest is thawed" is_thawed hangs
is "$(guest_verdict hangs)" OK "and misses nothing"
done_testing
