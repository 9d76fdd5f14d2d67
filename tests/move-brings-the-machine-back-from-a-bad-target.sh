#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The target is damaged after it was read back: the proof finds it, and the machine, which was switched already,
# goes back to its source with all that it wrote meanwhile.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

base_is_copied()
{
    [ "$(stat -c %b "$1")" -gt 24576 ]
}

# damaged NAME STYLE FORMAT PAUSES [OPTION...]
damaged()
{
    local name=$1 disk=disk.$3
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$3" "$tmp/$name.a/$disk" 64M
    must qemu-io -f "$3" -c 'write -P 7 16M 48M' "$tmp/$name.a/$disk"
    start_guest "$name" "$2" --disk "$tmp/$name.a/$disk:$3" --append 'span=8M flush=64 log=1'
    guest_wait_ready "$name"
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" -O raw --json --bandwidth 16MiB/s "${@:5}" \
        >"$tmp/$name.json" 2>"$tmp/$name.err" 3>&- </dev/null &
    local pid=$!
    wait_for 20 base_is_copied "$tmp/$name.b/$disk" || not_ok "$name: the copy begins"
    # Past the cache, as a bad disk would.
    must dd if=/dev/urandom "of=$tmp/$name.b/$disk" bs=4096 count=1 seek=$((20 << 8)) conv=notrunc oflag=direct status=none
    wait "$pid"
    is "$?" 6 "$name: a difference has its own exit status" || diag "$(cat "$tmp/$name.err")"
    like "$(cat "$tmp/$name.err")" "differs from the source in the 1048576 bytes at 20971520" "$name: and is told"
    is "$(jq -r .result "$tmp/$name.json")" failed "$name: the result says so"
    is "$(guest_pauses "$name" | wc -l)" "$4" "$name: it stood still for the switch and the return"
    is "$(files "$tmp/$name.a")" "$disk " "$name: the source is as it was"
    is "$(files "$tmp/$name.b")" "" "$name: the bad target is gone"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.a/$disk" "$3")" '^OK [1-9]' "$name: and the host agrees"
    [ "$3" != qcow2 ] || image_clean "$tmp/$name.a/$disk" "$name: qemu-img check finds nothing"
}

# killed_on_the_way NAME FORMAT: SIGKILL while the machine goes back; the same command again completes that.
killed_on_the_way()
{
    local name=$1 disk=disk.$2 pid try
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$2" "$tmp/$name.a/$disk" 64M
    must qemu-io -f "$2" -c 'write -P 7 16M 48M' "$tmp/$name.a/$disk"
    start_guest "$name" --libvirt-style --disk "$tmp/$name.a/$disk:$2" --append 'span=8M flush=64 log=1'
    guest_wait_ready "$name"
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" -O raw --bandwidth 16MiB/s \
        >/dev/null 2>&1 3>&- </dev/null &
    pid=$!
    wait_for 20 base_is_copied "$tmp/$name.b/$disk" || not_ok "$name: the copy begins"
    must dd if=/dev/urandom "of=$tmp/$name.b/$disk" bs=4096 count=1 seek=$((20 << 8)) conv=notrunc oflag=direct status=none
    for try in $(seq 10000); do
        [ ! -e "$tmp/$name.b/$disk.blockmig-$3" ] || break
        sleep 0.002
    done
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    diag "left: $(files "$tmp/$name.a") and $(files "$tmp/$name.b")"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" -O raw --json
    like "$status" '^[46]$' "$name: it goes on going back"
    diag "$err"
    is "$(files "$tmp/$name.a")" "$disk " "$name: the source is as it was"
    is "$(files "$tmp/$name.b")" "" "$name: the bad target is gone"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.a/$disk" "$2")" '^OK [1-9]' "$name: and the host agrees"
}

damaged qcow2 --libvirt-style qcow2 2
damaged raw --drive-style raw 3 # and for the snapshot
# Without a pause the proof comes first: there is no way to come back.
damaged mirror --libvirt-style qcow2 0 --method=mirror
killed_on_the_way begun qcow2 1
killed_on_the_way passes raw 3
done_testing
