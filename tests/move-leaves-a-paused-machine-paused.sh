#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that an administrator paused while its disk is moved stays paused: through the switch, through SIGKILL in it,
# where the guard takes over, and through what the next run makes of that.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G
use_seed

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 32M 32M' "$tmp/a/disk.qcow2"
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
guest_wait_ready g

state()
{
    qmp g '{"execute": "query-status"}' | jq -r .status
}

resumes()
{
    jq -r 'select(.event == "RESUME") | .event' "$tmp/g/events" | wc -l
}

# on_side: where the disk is now, "a" or "b".
on_side()
{
    [ -e "$tmp/b/disk.qcow2" ] && [ ! -e "$tmp/a/disk.qcow2" ] && { echo b; return; }
    echo a
}

other()
{
    [ "$1" = a ] && echo b || echo a
}

is_near_the_switch()
{
    [ -e "$tmp/$1/disk.qcow2.blockmig-new" ]
}

for round in 1 2 3 4; do
    from=$(on_side)
    to=$(other "$from")
    "$builddir/tools/blockmig" move "qmp:$tmp/g/qmp" "$tmp/$to" "${patient[@]}" --json --delete-source --bandwidth 16MiB/s \
        >"$tmp/json" 2>"$tmp/err" 3>&- </dev/null &
    pid=$!
    wait_for 20 test -e "$tmp/$to/disk.qcow2" || not_ok "round $round: the copy begins"
    must qmp g '{"execute": "stop"}'
    before=$(resumes)
    wait_for 60 is_near_the_switch "$to" || not_ok "round $round: it comes near the switch"
    below 40
    sleep "0.0$(printf %02d "$REPLY")"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    sleep 1
    is "$(state)" paused "round $round: after SIGKILL it is still paused"
    run blockmig move "qmp:$tmp/g/qmp" "$tmp/$to" "${patient[@]}" --json --delete-source
    diag "round $round: the next run ends with $status: $(jq -r .result <<<"$out")"
    like "$status" '^[04]$' "round $round: the next run finishes or rolls back" || diag "$err"
    is "$(state)" paused "round $round: and it is still paused"
    is "$(resumes)" "$before" "round $round: nobody has resumed it"
    must qmp g '{"execute": "cont"}'
    sleep 0.5
    is "$(guest_verdict g)" OK "round $round: the guest misses nothing"
    must guest_cmd g start
done
done_testing
