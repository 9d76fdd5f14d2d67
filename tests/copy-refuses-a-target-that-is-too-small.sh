#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A device, file system or quota that is too small is refused before a byte is written.
. "${srcdir:-.}/tests/lib.sh"
need_loop
need_tool qemu-img qemu-io
use_seed

make_pattern_image "$tmp/disk.qcow2" qcow2 32M 40

# A raw copy needs the whole virtual size on a device.
random_file "$tmp/small" 31M 1
sum=$(sha256sum <"$tmp/small")
loop_device "$tmp/small"
fails_with 3 "a device smaller than the disk" blockmig copy --force -O raw "$tmp/disk.qcow2" "$REPLY"
is "$(sha256sum <"$tmp/small")" "$sum" "the device is as it was"
truncate -s 32M "$tmp/exact"
loop_device "$tmp/exact"
check "a device of exactly its size" blockmig copy --force -O raw "$tmp/disk.qcow2" "$REPLY"
same_content "$tmp/disk.qcow2" "$REPLY" "gets all of it" -F raw
truncate -s 40M "$tmp/larger"
loop_device "$tmp/larger"
check "a larger device" blockmig copy --force -O raw "$tmp/disk.qcow2" "$REPLY"
same_content "$tmp/disk.qcow2" "$REPLY" "gets all of it, too" -F raw

random_file "$tmp/big" 24M 2
small_filesystem ext4 16M
fails_with 3 "a file system without the space" blockmig copy -f raw -O qcow2 "$tmp/big" "$REPLY/disk.qcow2"
check "no target is left" test ! -e "$REPLY/disk.qcow2"
fails_with 3 "plan says the same" blockmig plan copy -f raw -O qcow2 "$tmp/big" "$REPLY/disk.qcow2"

# A thin disk needs the space of its data, not of its size.
must qemu-img create -q -f qcow2 "$tmp/thin.qcow2" 1T
must qemu-io -f qcow2 -c "write -P 7 512G 1M" "$tmp/thin.qcow2"
check "1 TiB with 1 MiB of data fits" blockmig copy "$tmp/thin.qcow2" "$REPLY/thin.qcow2"
same_content "$tmp/thin.qcow2" "$REPLY/thin.qcow2" "and is right"

n=0
while : >"$REPLY/inode.$((++n))"; do :; done 2>/dev/null
rm -f "$REPLY/thin.qcow2" "$REPLY/inode.$n"
: >"$REPLY/last"
fails_with 3 "a file system without an inode" blockmig copy "$tmp/thin.qcow2" "$REPLY/new.qcow2"
done_testing
