#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that writes all the time is moved to another datastore: it loses nothing, stands still for
# milliseconds, and nothing is left over.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# moved NAME STYLE FORMAT [OPTION...]: one move of a new machine, from $tmp/NAME.a to $tmp/NAME.b.
moved()
{
    local name=$1 style=$2 format=$3 target=$3 disk=disk.$3
    shift 3
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$format" "$tmp/$name.a/$disk" 64M
    start_guest "$name" "$style" --disk "$tmp/$name.a/$disk:$format" --append 'span=32M flush=64 log=1'
    guest_wait_ready "$name"
    sleep 1
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json "$@"
    is "$status" 0 "$name: the disk is moved"
    [ "$status" -eq 0 ] || diag "$err"
    cp /dev/stdin "$tmp/$name.json" <<<"$out"
    sleep 1
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    # Nodes of -drive cannot be told to keep their files open: the snapshot needs a moment of its own.
    local pauses=1
    [ "$style" != --drive-style ] || pauses=2
    is "$(guest_pauses "$name" | wc -l)" "$pauses" "$name: it stood still so many times"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/$disk" "$target")" '^OK [1-9]' "$name: and the host agrees, exactly"
    [ "$target" != qcow2 ] || image_clean "$tmp/$name.b/$disk" "$name: qemu-img check finds nothing"
    diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, snapshot_pause_ms, duration_s, d: .disks[0].bytes_in_pause}' "$tmp/$name.json")"
}

kept()
{
    run_ok "$1: the kept source is what the receipt says" blockmig verify "$tmp/$1.a/disk.$2.blockmig-source" \
        --receipt "$(jq -r .receipt "$tmp/$1.json")"
    is "$(files "$tmp/$1.a")" "disk.$2.blockmig-source " "$1: only the kept source is left"
    is "$(files "$tmp/$1.b")" "disk.$2 " "$1: only the disk is there"
}

moved qcow2 --libvirt-style qcow2
kept qcow2 qcow2
is "$(jq -c '[.command, .method, .result, .source, .disks[0].disk, .disks[0].verified]' "$tmp/qcow2.json")" \
    '["move","storage","done","kept","vd0","full"]' "the report names what was done"
is "$(jq '.passes > 1 and .pause_ms > 0 and .pause_forecast_ms > 0 and .snapshot_pause_ms == null' "$tmp/qcow2.json")" true \
    "and what was measured"
is "$(jq '.disks[0].bytes_in_pause < 16777216' "$tmp/qcow2.json")" true "little was left for the pause"
is "$(guest_pauses qcow2 | tail -n 1)" "$(jq -r .pause_ms "$tmp/qcow2.json" | xargs printf '%.3f')" \
    "the pause is that of the machine's own events"
moved raw --libvirt-style raw
kept raw raw
moved drive --drive-style qcow2 --delete-source
is "$(jq '.snapshot_pause_ms > 0' "$tmp/drive.json")" true "drive: the pause of the snapshot is told"
is "$(files "$tmp/drive.a")" "" "drive: the source is deleted"
moved rawdrive --drive-style raw
kept rawdrive raw
done_testing
