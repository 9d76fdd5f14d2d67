#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# SIGKILL in the middle of a move that keeps its chain: before the switch no layer of the target stays, after it all are
# there and right.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# killed NAME MODE CONDITION [OPTION...]
killed()
{
    local name=$1 mode=$2 when=$3 layers="disk.qcow2 low.qcow2 "
    shift 3
    [ "$mode" = keep ] || layers="disk.qcow2 "
    a=$tmp/$name.a b=$tmp/$name.b
    mkdir "$a" "$b"
    must qemu-img create -q -f qcow2 "$a/low.qcow2" 64M
    must qemu-io -f qcow2 -c 'write -P 1 20M 24M' "$a/low.qcow2"
    must qemu-img create -q -f qcow2 -F qcow2 -b low.qcow2 "$a/disk.qcow2"
    must qemu-io -f qcow2 -c 'write -P 2 30M 24M' "$a/disk.qcow2"
    must cp "$a/low.qcow2" "$tmp/$name.low"
    start_guest "$name" --libvirt-style --disk "$a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    kill_when "$when" move "qmp:$tmp/$name/qmp" "$b" "${patient[@]}" --chain="$mode" "$@"
    wait_for 5 is_running "$name" && ok "$name: the machine runs on" || not_ok "$name: the machine runs on"
    diag "left: $(files "$a") and $(files "$b")"
    run blockmig move "qmp:$tmp/$name/qmp" "$b" "${patient[@]}" --chain="$mode" --json
    diag "$(jq -c '{result, phase, error}' <<<"$out")"
    if [ "$status" -eq 4 ]; then
        is "$(files "$a"), $(files "$b")" "disk.qcow2 low.qcow2 , " "$name: rolled back, nothing is left"
        run blockmig move "qmp:$tmp/$name/qmp" "$b" "${patient[@]}" --chain="$mode" --json
    fi
    is "$status" 0 "$name: the move is done in the end"
    [ "$status" -eq 0 ] || diag "$err"
    receipt=$(jq -r .receipt <<<"$out")
    is "$(files "$a"), $(files "$b")" "disk.qcow2.blockmig-source low.qcow2 , $layers" "$name: all is where it should be"
    sleep 0.3
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$b/disk.qcow2" qcow2)" '^OK [1-9]' "$name: and the host agrees"
    run qemu-io -r -f qcow2 -c 'read -P 1 20M 10M' -c 'read -P 2 30M 24M' "$b/disk.qcow2"
    unlike "$out$err" 'failed|open' "$name: all layers are there to be read"
    same_content "$tmp/$name.low" "$a/low.qcow2" "$name: nothing was written into the lower layer"
    [ "$mode" != keep ] || same_content "$tmp/$name.low" "$b/low.qcow2" "$name: nor into its copy"
    run_ok "$name: the kept source is what the receipt says" blockmig verify "$a/disk.qcow2.blockmig-source" \
        --receipt "$receipt"
}

killed lower keep '[ -e "$b/low.qcow2" ]' --bandwidth 8MiB/s
killed upper keep '[ -e "$b/disk.qcow2" ]' --bandwidth 32MiB/s
killed switch keep '[ -e "$b/disk.qcow2.blockmig-new" ]'
killed proof keep '[ ! -e "$a/disk.qcow2" ]'
killed shallow shallow '[ -e "$b/disk.qcow2.blockmig-new" ]'
done_testing
