#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What happens to a machine while its disk is moved is noticed and said, and each has its own end: the move goes
# on, waits, is rolled back, or leaves everything untouched.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# machine NAME [ARGUMENTS of start_guest...]: with a disk of 64 MiB, half of it data, that is copied in about 4 s.
machine()
{
    local name=$1
    shift
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f qcow2 "$tmp/$name.a/disk.qcow2" 64M
    must qemu-io -f qcow2 -c 'write -P 7 32M 32M' "$tmp/$name.a/disk.qcow2"
    start_guest "$name" --libvirt-style --disk "$tmp/$name.a/disk.qcow2:qcow2" "$@"
    guest_wait_ready "$name"
}

# begin NAME [OPTION...]: a move in the background that is in its base copy now; sets pid.
begin()
{
    local name=$1
    shift
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json --bandwidth 8MiB/s "$@" \
        >"$tmp/$name.json" 2>"$tmp/$name.err" 3>&- </dev/null &
    pid=$!
    wait_for 20 base_is_copied "$tmp/$name.b/disk.qcow2" || not_ok "$name: the copy begins"
}

base_is_copied()
{
    [ "$(stat -c %b "$1")" -gt 8192 ]
}

# ends NAME STATUS RESULT: waits for its end.
ends()
{
    wait "$pid"
    is "$?" "$2" "$1: exit status" || diag "$(cat "$tmp/$1.err")"
    is "$(jq -r .result "$tmp/$1.json")" "$3" "$1: result"
}

said()
{
    like "$(cat "$tmp/$1.err")" "$2" "$1: it is said"
}

# top_node NAME: the node that the first disk is on.
top_node()
{
    qmp "$1" '{"execute": "query-block"}' | jq -r 'map(select(.inserted))[0].inserted."node-name"'
}

# moved NAME: nothing is lost, and the host agrees.
moved()
{
    is "$(guest_verdict "$1")" OK "$1: the guest misses nothing"
    stop_guest "$1"
    like "$(host_verdict "$1" 0 "$tmp/$1.b/disk.qcow2" qcow2)" '^OK [1-9]' "$1: and the host agrees"
    is "$(files "$tmp/$1.a")" "disk.qcow2.blockmig-source " "$1: only the kept source is left"
}

rolled_back()
{
    is "$(files "$tmp/$1.a")" "disk.qcow2 " "$1: nothing is left beside the source"
    is "$(files "$tmp/$1.b")" "" "$1: nor on the target"
}

guest=(--append 'span=16M flush=64 log=1')

# ---- goes on ----
machine reset "${guest[@]}"
begin reset
must qmp reset '{"execute": "system_reset"}'
ends reset 0 done
said reset 'the guest was reset \(host-qmp-system-reset\): the move goes on'
guest_wait_ready reset 2
sleep 1
moved reset

machine paused "${guest[@]}"
begin paused
must qmp paused '{"execute": "stop"}'
ends paused 0 done
said paused 'somebody paused the machine: it stays so'
is "$(qmp paused '{"execute": "query-status"}' | jq -r .status)" paused "paused: it is still paused"
is "$(jq -r .pause_ms "$tmp/paused.json")" null "paused: there was no pause of ours"
must qmp paused '{"execute": "cont"}'
sleep 1
moved paused

# Somebody who resumes the machine all the time, also in our pauses: it may be rolled back, but nothing is lost.
keeps_resuming()
{
    local conts=()
    for _ in $(seq 200); do
        conts+=('{"execute": "cont"}')
    done
    while kill -0 "$pid" 2>/dev/null; do
        qmp resumed "${conts[@]}"
    done
}

# judged NAME: where the machine is then, all is there.
judged()
{
    local image=$tmp/$1.a/disk.qcow2
    wait "$pid"
    status=$?
    diag "$1: exit status $status, $(tail -n 2 "$tmp/$1.err")"
    [ "$status" -ne 0 ] || image=$tmp/$1.b/disk.qcow2
    like "$status" '^[04]$' "$1: moved, or rolled back" || diag "$(cat "$tmp/$1.err")"
    is "$(guest_verdict "$1")" OK "$1: the guest misses nothing"
    stop_guest "$1"
    like "$(host_verdict "$1" 0 "$image" qcow2)" '^OK [1-9]' "$1: and the host agrees"
}

machine resumed "${guest[@]}"
begin resumed
start keeps_resuming
judged resumed

# The same in the middle of the switch: what it writes is on both sides, or comes back with it.
resumes_in_switch()
{
    qmp late '{"wait": "BLOCK_JOB_READY", "data": {"device": "blockmig-pivot-0"}, "seconds": 60}' '{"execute": "cont"}'
}

machine late "${guest[@]}"
begin late
start resumes_in_switch
judged late
[ "$status" -eq 0 ] || said late 'somebody resumed the machine in the pause'

# ---- waits ----
machine busy "${guest[@]}"
begin busy
must qmp busy '{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "backup", "size": 67108864}}' \
    '{"execute": "blockdev-backup", "arguments": {"job-id": "nightly", "device": "'"$(top_node busy)"'",
      "target": "backup", "sync": "full", "speed": 6291456, "auto-dismiss": true}}'
must qmp busy '{"wait": "BLOCK_JOB_COMPLETED", "data": {"device": "nightly"}, "seconds": 60}'
ends busy 0 done
said busy 'job "nightly" of somebody else uses disk vd0: the layers stay as they are until it ends'
moved busy

# ---- rolls back ----
machine resized "${guest[@]}"
begin resized
must qmp resized '{"execute": "block_resize", "arguments": {"node-name": "'"$(top_node resized)"'", "size": 100663296}}'
ends resized 4 rolled-back
said resized 'disk vd0 was resized from 67108864 to 100663296 bytes'
rolled_back resized
is "$(guest_verdict resized)" OK "resized: the guest misses nothing"
stop_guest resized
is "$(qemu-img info --output=json "$tmp/resized.a/disk.qcow2" | jq '."virtual-size"')" 100663296 "resized: it stays so"

must qemu-img create -q -f qcow2 "$tmp/second.qcow2" 64M
machine unplugged "${guest[@]}" --append 'span=16M flush=64 log=1 disks=1' --disk "$tmp/second.qcow2:qcow2"
begin unplugged
must qmp unplugged '{"execute": "device_del", "arguments": {"id": "vd1"}}'
ends unplugged 4 rolled-back
said unplugged 'disk vd1 was unplugged from the machine'
rolled_back unplugged
is "$(files "$tmp" | grep -c second.qcow2.blockmig)" 0 "unplugged: nor beside the disk that has gone"
is "$(guest_verdict unplugged)" OK "unplugged: the guest misses nothing"
stop_guest unplugged
image_clean "$tmp/second.qcow2" "unplugged: qemu-img check finds nothing"

# ---- touches nothing ----
machine off "${guest[@]}"
begin off
must guest_cmd off poweroff
ends off 8 failed
said off 'the guest shuts down \(guest-shutdown\)'
said off 'the monitor is gone'
like "$(jq -r .advice "$tmp/off.json")" 'nothing more was touched' "off: and what became of it"
like "$(host_verdict off 0 "$tmp/off.a/disk.qcow2" qcow2)" '^OK [1-9]' "off: the disk's name leads to all that was written"
is "$(files "$tmp/off.a")" "disk.qcow2 disk.qcow2.blockmig-0 " "off: the layers are kept"

machine killed "${guest[@]}"
begin killed
kill_guest killed
ends killed 8 failed
said killed 'the monitor is gone'
like "$(host_verdict killed 0 "$tmp/killed.a/disk.qcow2" qcow2)" '^OK [1-9]' \
    "killed: the disk's name leads to all that was flushed"
done_testing
