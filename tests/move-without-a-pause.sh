#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that may not stand still is moved all the same: no STOP at the switch, nothing lost, and the target is
# proved before the machine reads anything of it.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# snapshot_pauses REPORT: how often it may have stood still before.
snapshot_pauses()
{
    jq 'if .snapshot_pause_ms == null then 0 else 1 end' <<<"$1"
}

# moved NAME STYLE FORMAT TARGET-FORMAT [OPTION...]: one move of a new machine, from $tmp/NAME.a to $tmp/NAME.b.
moved()
{
    local name=$1 style=$2 format=$3 target=$4 disk=disk.$3
    shift 4
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$format" "$tmp/$name.a/$disk" 64M
    start_guest "$name" "$style" --disk "$tmp/$name.a/$disk:$format" --append 'span=32M flush=64 log=1'
    guest_wait_ready "$name"
    sleep 1
    must guest_cmd "$name" reset
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" --json -O "$target" "$@"
    is "$status" 0 "$name: the disk is moved"
    [ "$status" -eq 0 ] || diag "$err"
    local report=$out
    diag "$(jq -c '{passes, snapshot_pause_ms, duration_s}' <<<"$report") longest write $(guest_stats "$name" | jq -c '.disks[0] // .')"
    is "$(jq -c '[.method, .result, .pause_ms, .pause_forecast_ms, .on_busy, .disks[0].bytes_in_pause]' <<<"$report")" \
        '["mirror","done",null,null,null,0]' "$name: the report says that there was no pause"
    is "$(guest_pauses "$name" | wc -l)" "$(snapshot_pauses "$report")" "$name: it did not stand still for the switch"
    sleep 1
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/$disk" "$target")" '^OK [1-9]' "$name: and the host agrees, exactly"
    [ "$target" != qcow2 ] || image_clean "$tmp/$name.b/$disk" "$name: qemu-img check finds nothing"
    run_ok "$name: the kept source is what the receipt says" blockmig verify "$tmp/$name.a/$disk.blockmig-source" \
        --receipt "$(jq -r .receipt <<<"$report")"
    is "$(files "$tmp/$name.a")" "$disk.blockmig-source " "$name: only the kept source is left"
    is "$(files "$tmp/$name.b")" "$disk " "$name: only the disk is there"
}

moved qcow2 --libvirt-style qcow2 qcow2 --max-pause=0
moved raw --drive-style raw raw --method=mirror
moved convert --drive-style qcow2 raw --method=mirror --max-pause=1ms

# All disks of a machine change sides at once.
mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/one.qcow2" 64M
must qemu-img create -q -f raw "$tmp/a/two.raw" 64M
start_guest two --libvirt-style --disk "$tmp/a/one.qcow2:qcow2" --disk "$tmp/a/two.raw:raw" \
    --append 'span=16M flush=64 log=1'
guest_wait_ready two
run blockmig plan move "qmp:$tmp/two/qmp" "$tmp/b" --max-pause=0
is "$status" 0 "two: there is a plan"
like "$out" 'method mirror: .* may not stand still \(storage was passed over' "two: which names the method, and why"
like "$out" 'pause: none for the switch' "two: and the pause"
run blockmig move "qmp:$tmp/two/qmp" "$tmp/b" --max-pause=0 --json --delete-source
is "$status" 0 "two: both disks are moved"
[ "$status" -eq 0 ] || diag "$err"
is "$(guest_pauses two | wc -l)" "$(snapshot_pauses "$out")" "two: without a pause"
is "$(files "$tmp/a") $(files "$tmp/b")" " one.qcow2 two.raw " "two: and nothing is left over"
sleep 1
is "$(guest_verdict two)" OK "two: the guest misses nothing"
stop_guest two
like "$(host_verdict two 0 "$tmp/b/one.qcow2" qcow2)" '^OK [1-9]' "two: the host agrees for the first"
like "$(host_verdict two 1 "$tmp/b/two.raw" raw)" '^OK [1-9]' "two: and for the second"
done_testing
