#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Image locks work both ways: a disk that a machine holds is refused, and what we hold QEMU refuses.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io qemu-system-x86_64
use_seed

for format in qcow2 raw; do
    make_pattern_image "$tmp/held.$format" "$format" 8M 20
    sum=$(sha256sum <"$tmp/held.$format")
    running_machine "$tmp/held.$format" "$format"
    machine=$REPLY
    fails_with 3 "$format: the disk of a running machine is refused" \
        blockmig copy -f "$format" "$tmp/held.$format" "$tmp/copy.$format"
    like "$err" "blockmig move" "$format: the message names the command that can"
    check "$format: no target is left" test ! -e "$tmp/copy.$format"
    make_pattern_image "$tmp/other.$format" "$format" 8M 5
    fails_with 3 "$format: a target that a machine holds is refused, with --force too" \
        blockmig copy --force -f "$format" -O "$format" "$tmp/other.$format" "$tmp/held.$format"
    stop_process "$machine"
    is "$(sha256sum <"$tmp/held.$format")" "$sum" "$format: the disk is as it was"
    check "$format: after the machine has gone it is copied" \
        blockmig copy -f "$format" "$tmp/held.$format" "$tmp/copy.$format"
done

# What we hold while copying.
random_file "$tmp/source" 24M 5
start "$blockmig" copy -q -f raw -O qcow2 --bandwidth=4MiB/s "$tmp/source" "$tmp/target"
copier=$REPLY
wait_for 10 test -s "$tmp/target.blockmig-part"
sleep 0.3
fails_with 1 "QEMU cannot write to the source meanwhile" qemu-io -f raw -c "write 0 512" "$tmp/source"
check "QEMU can read the source meanwhile" qemu-io -r -f raw -c "read 0 512" "$tmp/source"
fails_with 1 "QEMU cannot open the target meanwhile" qemu-io -r -f qcow2 -c "read 0 512" "$tmp/target.blockmig-part"
fails_with 3 "a second copy to the same target is refused" \
    blockmig copy -f raw -O qcow2 "$tmp/source" "$tmp/target"
wait "$copier"
is $? 0 "the first copy was not disturbed"
same_content "$tmp/source" "$tmp/target" "and is right" -f raw
check "afterwards QEMU writes to the source" qemu-io -f raw -c "write 0 512" "$tmp/source"
done_testing
