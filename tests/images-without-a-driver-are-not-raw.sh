#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An image of a format that we cannot read is refused, not copied as if its bytes were the disk; unless the user says so.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img

check()
{
    local name=$1
    fails_with 3 "$name: copied to qcow2" blockmig copy -O qcow2 "$tmp/disk.$name" "$tmp/out.$name"
    like "$err" "looks like .*-f raw" "$name: and what to do is said"
    fails_with 3 "$name: looked at" blockmig info "$tmp/disk.$name"
    run blockmig copy -f raw "$tmp/disk.$name" "$tmp/bytes.$name"
    is "$status" 0 "$name: taken as raw if the user says so"
    is "$(cmp "$tmp/disk.$name" "$tmp/bytes.$name" 2>&1)" "" "$name: to the last byte"
}

for name in qed parallels; do
    must qemu-img create -q -f "$name" "$tmp/disk.$name" 16M
    check "$name"
done
done_testing
