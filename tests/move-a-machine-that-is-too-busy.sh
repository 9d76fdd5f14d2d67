#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that writes too much for the pause that is allowed: what --on-busy says is done, and the limits that it had
# are its limits again, whatever happens.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# Shipping is slow, and even the slowest guest has written nearly all its 512 KiB again when they are shipped: no pass
# shrinks, and each takes some two seconds.
slow=(--bandwidth=256KiB/s --max-pause=1s)

# set_limits NAME WRITES: as an administrator would, with the rest always the same.
set_limits()
{
    must qmp "$1" '{"execute": "block_set_io_throttle", "arguments": {"id": "/machine/peripheral/vd0/virtio-backend",
        "bps": 0, "iops": 0, "iops_rd": 0, "bps_rd": 900000000, "bps_wr": 800000000, "bps_wr_max": 990000000,
        "bps_wr_max_length": 3, "iops_wr": '"$2"', "iops_size": 8192, "group": "shared"}}'
    limits "$1" >"$tmp/$1.limits"
}

# start_busy NAME: its disk has limits of its own, which do not bind it.
start_busy()
{
    mkdir -p "$tmp/$1.a" "$tmp/$1.b"
    must qemu-img create -q -f qcow2 "$tmp/$1.a/disk.qcow2" 64M
    start_guest "$1" --libvirt-style --disk "$tmp/$1.a/disk.qcow2:qcow2" --append 'span=512K flush=64 log=1'
    guest_wait_ready "$1"
    set_limits "$1" 70000
}

# limits NAME: what QEMU says of them.
limits()
{
    qmp "$1" '{"execute": "query-block"}' |
        jq -Sc '[.. | .inserted? // empty | with_entries(select(.key | test("^(iops|bps|group)")))]'
}

has_own_limits()
{
    [ "$(limits "$1")" = "$(cat "$tmp/$1.limits")" ]
}

is_limited()
{
    limits "$1" | jq -e '.[0].bps_wr < 800000000' >/dev/null
}

# ends_well NAME DIRECTORY: nothing is lost, and the disk is there.
ends_well()
{
    has_own_limits "$1" && ok "$1: its limits are as they were" || not_ok "$1: its limits are as they were"
    diag "$(limits "$1")"
    sleep 0.5
    is "$(guest_verdict "$1")" OK "$1: the guest misses nothing"
    stop_guest "$1"
    like "$(host_verdict "$1" 0 "$2/disk.qcow2" qcow2)" '^OK [1-9]' "$1: and the host agrees"
    image_clean "$2/disk.qcow2" "$1: qemu-img check finds nothing"
}

start_busy throttle
run blockmig move "qmp:$tmp/throttle/qmp" "$tmp/throttle.b" "${slow[@]}" --on-busy=throttle --json
is "$status" 0 "throttle: the disk is moved"
[ "$status" -eq 0 ] || diag "$err"
diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, write_limit}' <<<"$out")"
is "$(jq -c '[.method, .result, .on_busy, .pause_ms > 0, .write_limit > 0]' <<<"$out")" \
    '["storage","done","throttle",true,true]' "throttle: and the report says how"
ends_well throttle "$tmp/throttle.b"

start_busy mirror
run blockmig move "qmp:$tmp/mirror/qmp" "$tmp/mirror.b" --max-pause=1ms --on-busy=mirror --json
is "$status" 0 "mirror: the disk is moved"
[ "$status" -eq 0 ] || diag "$err"
is "$(jq -c '[.method, .result, .on_busy, .pause_ms, .write_limit]' <<<"$out")" '["mirror","done","mirror",null,null]' \
    "mirror: without a pause, and the report says why"
like "$err" 'the switch is made without a pause' "mirror: which is told when it is decided"
is "$(blockmig job show --json "$(jq -r .job <<<"$out")" | jq -r .method)" mirror "mirror: the journal knows it as well"
is "$(guest_pauses mirror | wc -l)" "$(jq 'if .snapshot_pause_ms == null then 0 else 1 end' <<<"$out")" \
    "mirror: the machine did not stand still"
ends_well mirror "$tmp/mirror.b"

# No limit makes a pause of 1 ms possible.
start_busy park
run blockmig move "qmp:$tmp/park/qmp" "$tmp/park.b" --max-pause=1ms --on-busy=throttle --json
is "$status" 5 "park: what cannot be helped by a limit is not done" || diag "$err"
like "$err" 'even with the machine.s writes limited' "park: and that is said"
is "$(jq -c '[.result, .on_busy, .write_limit > 0]' <<<"$out")" '["parked","park",true]' "park: in the report, too"
ends_well park "$tmp/park.a"

# Killed while the machine is limited.
start_busy kill
"$builddir/tools/blockmig" move "qmp:$tmp/kill/qmp" "$tmp/kill.b" "${slow[@]}" --on-busy=throttle >/dev/null 2>&1 3>&- </dev/null &
pid=$!
wait_for 60 is_limited kill && ok "kill: the machine is limited" || not_ok "kill: the machine is limited"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
is_limited kill && ok "kill: and stays so" || not_ok "kill: and stays so"
run blockmig move "qmp:$tmp/kill/qmp" "$tmp/kill.b" "${slow[@]}" --on-busy=throttle --json
is "$status" 0 "kill: running it again goes on" || diag "$err"
ends_well kill "$tmp/kill.b"

# Somebody sets other limits meanwhile.
start_busy other
"$builddir/tools/blockmig" move "qmp:$tmp/other/qmp" "$tmp/other.b" "${slow[@]}" --on-busy=throttle >/dev/null 2>"$tmp/other.err" 3>&- </dev/null &
pid=$!
wait_for 60 is_limited other && ok "other: the machine is limited" || not_ok "other: the machine is limited"
set_limits other 60000
kill -TERM "$pid"
wait "$pid"
is "$?" 4 "other: the move is cancelled"
like "$(cat "$tmp/other.err")" 'somebody has changed its limits meanwhile: they stay' "other: limits of somebody else are told of"
ends_well other "$tmp/other.a"
done_testing
