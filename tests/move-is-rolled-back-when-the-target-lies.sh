#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The target's medium stores one byte of the base wrongly and reports success: reading back sees it, the machine stays
# where it is and nothing is left of the move.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_fuse
need_loop
need_free 1G

# A file system on a medium that flips a bit wherever somebody writes the mark.
export MEDIUM=$tmp/medium MARK=here-the-medium-lies
truncate -s 160M "$MEDIUM"
fuse_file eval get_size='stat -Lc %s "$MEDIUM"' can_write='exit 0' can_flush='exit 0' flush='exit 0' \
    pread='dd if="$MEDIUM" skip=$4 count=$3 iflag=count_bytes,skip_bytes,fullblock bs=1M status=none' \
    pwrite='data=$(mktemp "$MEDIUM.XXXXXX")
        cat >"$data"
        dd if="$data" of="$MEDIUM" seek=$4 oflag=seek_bytes bs=1M conv=notrunc status=none || exit 1
        at=$(grep -abo "$MARK" "$data" | head -n 1 | cut -d: -f1)
        rm "$data"
        [ -z "$at" ] || printf x | dd of="$MEDIUM" seek=$(($4 + at)) oflag=seek_bytes conv=notrunc status=none'
loop_device "$REPLY" --direct-io=on
must mkfs.ext4 -q -F "$REPLY"
mkdir "$tmp/b" "$tmp/a"
must mount "$REPLY" "$tmp/b"
at_exit unmount "$tmp/b"
must rmdir "$tmp/b/lost+found"

must qemu-img create -q -f raw "$tmp/a/disk.raw" 64M
printf %s "$MARK" | dd of="$tmp/a/disk.raw" bs=1 seek=$((40 << 20)) conv=notrunc status=none
for format in raw qcow2; do
    [ "$format" = raw ] || must qemu-img convert -f raw -O qcow2 "$tmp/a/disk.raw" "$tmp/a/disk.qcow2"
    start_guest "$format" --libvirt-style --disk "$tmp/a/disk.$format:$format" --append 'span=8M flush=64 log=1'
    guest_wait_ready "$format"
    run blockmig move "qmp:$tmp/$format/qmp" "$tmp/b" --json "${patient[@]}"
    is "$status" 6 "$format: what was not stored is a difference" || diag "$err"
    like "$err" "differ|not what was written" "$format: and is told"
    is "$(jq -r .source <<<"$out")" kept "$format: the source is kept"
    is "$(cd "$tmp/b" && ls)" "" "$format: nothing is left on the target"
    is "$(guest_verdict "$format")" OK "$format: the guest misses nothing"
    stop_guest "$format"
    like "$(host_verdict "$format" 0 "$tmp/a/disk.$format" "$format")" '^OK [1-9]' "$format: and the host agrees"
    [ "$format" = raw ] || is "$(cd "$tmp/a" && ls | tr '\n' ' ')" "disk.qcow2 disk.raw " "$format: nor beside the source"
done
done_testing
