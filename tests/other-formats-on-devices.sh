#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Formats with blocks on a used block device: nothing of what was there shows through, the image ends where it must.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq python3
need_loop
use_seed

# device SIZE: a loop device full of rubbish; sets REPLY.
device()
{
    rm -f "$tmp/device"
    python3 -c 'import sys; sys.stdout.buffer.write(b"\x5a" * int(sys.argv[1]))' "$1" >"$tmp/device"
    loop_device "$tmp/device"
}

mixed_file "$tmp/source.raw" 20M "$RANDOM"
for format in vhd vhdx vdi vmdk; do
    case $format in vhd) qemu=vpc ;; *) qemu=$format ;; esac
    device $((40 << 20))
    target=$REPLY
    run_ok "$format, dynamic" blockmig copy -q --force -O "$format" "$tmp/source.raw" "$target"
    run_ok "is the same disk" blockmig verify -q --strict "$tmp/source.raw" "$target"
    # Which does not ask the bitmaps of a VHD.
    same_content "$tmp/source.raw" "$target" "$format: to QEMU, too" -f raw -F "$qemu"
    if [ "$format" = vhd ]; then
        must cp "$target" "$tmp/taken.vhd"
        check "the book agrees" python3 "$srcdir/tests/read-vhd.py" "$tmp/book.raw" "$tmp/taken.vhd"
        check "to the byte" cmp "$tmp/book.raw" "$tmp/source.raw"
    fi
    if [ "$format" != vmdk ]; then # which QEMU writes only in files that grow
        write_patterns "$target" "$qemu" $((20 << 20)) 10
        must qemu-img convert -f "$qemu" -O raw "$target" "$tmp/after.raw"
        run_ok "$format: QEMU writes to it, and we read that" blockmig verify -q --strict "$tmp/after.raw" "$target"
    fi
    run_ok "$format: over it another one" blockmig copy -q --force -O "$format" "$tmp/source.raw" "$target"
    run_ok "is right, too" blockmig verify -q --strict "$tmp/source.raw" "$target"
    must losetup -d "$target"
done

device $(((20 << 20) + 512))
target=$REPLY
run_ok "a fixed VHD fits exactly" blockmig copy -q --force -O vhd -o subformat=fixed "$tmp/source.raw" "$target"
same_content "$tmp/source.raw" "$target" "and QEMU sees the same" -f raw -F vpc
must losetup -d "$target"
device $((21 << 20))
export BLOCKMIG_STATE_DIR=$tmp/unused
fails_with 3 "on a larger device nobody would find its footer" \
    blockmig copy -q --force -O vhd -o subformat=fixed "$tmp/source.raw" "$REPLY"
like "$err" "20972032 bytes are needed, there are 22020096" "so it is refused"
is "$(blockmig job list --json | jq -c .jobs)" "[]" "before there is a job"
fails_with 3 "a plan says the same" blockmig plan copy --force -O vhd -o subformat=fixed "$tmp/source.raw" "$REPLY"
fails_with 3 "nor the end of a streamOptimized image, on any device" \
    blockmig plan copy --force -O vmdk -o subformat=streamOptimized "$tmp/source.raw" "$REPLY"
done_testing
