#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# In the pause no more is shipped than the blocks of 4 KiB that the guest wrote since the last pass, as qemu-img finds
# them in the last overlay, which is kept while the way back is open.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 1G
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=512M flush=64 log=1'
guest_wait_ready g
sleep 1
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json --keep-failback=1h
is "$status" 0 "the disk is moved" || diag "$err"
shipped=$(jq '.disks[0].bytes_in_pause' <<<"$out")
top=$(ls -v "$tmp/a"/disk.qcow2.blockmig-* | tail -n 1)
written=$(qemu-img map -U --output=json -f qcow2 "$top" 3>&- |
    jq '[.[] | select(.depth == 0 and .data) | .length] | add // 0')
diag "$written bytes were written, $shipped shipped"
[ "$written" -gt 0 ] && ok "something was written" || not_ok "something was written"
[ $((shipped * 10)) -le $((written * 12)) ] && ok "no more was shipped, but for a fifth" ||
    not_ok "no more was shipped, but for a fifth"
run_ok "the way back is closed" blockmig job finish "$(newest_job)"
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
done_testing
