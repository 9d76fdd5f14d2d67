#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# VHDs that we write are read by QEMU, to the last byte and with the whole size, and by a reader of the
# specification; VHDs that QEMU writes are read by us. Random changes, by both in turns.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io python3 jq
use_seed
driver=$builddir/tests/helpers/image-driver

# by_the_book OUT TOP [PARENT...]
by_the_book()
{
    python3 "$srcdir/tests/read-vhd.py" "$@"
}

qemu_size()
{
    qemu-img info --output=json -f vpc "$1" | jq '."virtual-size"'
}

# ---- whole copies -----------------------------------------------------------------------------------

for size in 512 1048576 20000256; do
    mixed_file "$tmp/source.raw" "$size" "$RANDOM"
    for options in subformat=dynamic subformat=dynamic,block_size=64k subformat=fixed; do
        rm -f "$tmp/disk.vhd" "$tmp/back.raw"
        run_ok "$size bytes, $options" blockmig copy -q -O vhd -o "$options" "$tmp/source.raw" "$tmp/disk.vhd"
        same_content "$tmp/source.raw" "$tmp/disk.vhd" "QEMU sees the same" -f raw -F vpc
        is "$(qemu_size "$tmp/disk.vhd")" "$size" "and all of it"
        check "and so does the book" by_the_book "$tmp/back.raw" "$tmp/disk.vhd"
        check "to the byte" cmp "$tmp/source.raw" "$tmp/back.raw"
        run_ok "it is compared in place" blockmig verify -q --strict "$tmp/source.raw" "$tmp/disk.vhd"
    done
done
mixed_file "$tmp/odd.raw" 1000001 "$RANDOM"
run_ok "a disk that is no multiple of 512" blockmig copy -O vhd "$tmp/odd.raw" "$tmp/odd.vhd"
like "$err" "odd.vhd: the disk has 1000448 bytes where the source has 1000001: the rest is zeros" "is rounded up, and that is told"
same_content "$tmp/odd.raw" "$tmp/odd.vhd" "and the rest is zeros" -f raw -F vpc

if command -v vhdiinfo >/dev/null; then
    run vhdiinfo "$tmp/odd.vhd"
    like "$out" "Media size.*1000448 bytes" "libvhdi sees the same size"
fi

# ---- thin -------------------------------------------------------------------------------------------

truncate -s 2040G "$tmp/huge.raw"
printf x | dd of="$tmp/huge.raw" bs=1 seek=$((1 << 40)) conv=notrunc status=none
run_ok "the largest VHD that there can be" blockmig copy -q -O vhd "$tmp/huge.raw" "$tmp/huge.vhd"
check "is thin" test "$(allocated "$tmp/huge.vhd")" -lt $((8 << 20))
run_ok "and the same disk" blockmig verify -q "$tmp/huge.raw" "$tmp/huge.vhd"
truncate -s $(((2040 << 30) + 512)) "$tmp/huge.raw"
fails_with 3 "a larger one is refused" blockmig copy -q -O vhd "$tmp/huge.raw" "$tmp/huger.vhd"
like "$err" "larger than 2190433320960" "with the limit"
rm -f "$tmp/huge.raw" "$tmp/huge.vhd"

# ---- what QEMU writes -------------------------------------------------------------------------------

# The size is a multiple of QEMU's geometry, or it would show less than it wrote.
reads_what_qemu_writes vhd vpc subformat=dynamic subformat=fixed subformat=dynamic,force_size=on \
    subformat=fixed,force_size=on

# ---- a child of a raw disk, as XenServer makes them: its parent's UUID is zero ------------------------

must blockmig create -q -O vhd "$tmp/base.vhd" 20000256
must blockmig create -q -O vhd --parent "$tmp/base.vhd" "$tmp/child.vhd"
fails_with 3 "a raw disk is not taken for a VHD" blockmig map --parent "raw:$tmp/source.raw" "$tmp/child.vhd"
must python3 -c 'import struct, sys
with open(sys.argv[1], "r+b") as file:
    file.seek(512)
    header = bytearray(file.read(1024))
    header[40:56] = bytes(16)
    struct.pack_into(">I", header, 36, ~(sum(header[:36]) + sum(header[40:])) & 0xffffffff)
    file.seek(512)
    file.write(header)' "$tmp/child.vhd"
run_ok "a child of nobody has the raw parent that is given" \
    blockmig verify -q -F raw --parent "raw:$tmp/source.raw" "$tmp/child.vhd" "$tmp/source.raw"
fails_with 3 "but no VHD" blockmig map --parent "$tmp/base.vhd" "$tmp/child.vhd"

# ---- random changes ---------------------------------------------------------------------------------

# changes STEPS: ours, then QEMU's, then ours, in one dynamic disk.
changes()
{
    local size=$(((RANDOM % 20000 + 1) * 512)) options=block_size=$((4096 << RANDOM % 10))
    rm -f "$tmp/d.vhd" "$tmp/model.raw"
    echo "size $size, $options"
    if [ $((RANDOM % 3)) -eq 0 ]; then
        qemu-img create -q -f vpc -o force_size=on "$tmp/d.vhd" "$size" || return
    else
        "$driver" create vhd "$tmp/d.vhd" "$size" "$options" || return
    fi
    for ((turn = 0; turn < 3; turn++)); do
        "$driver" random vhd "$tmp/d.vhd" "$tmp/model.raw" "$RANDOM" "$1" || return
        qemu-img compare -f vpc -F raw "$tmp/d.vhd" "$tmp/model.raw" && [ "$(qemu_size "$tmp/d.vhd")" = "$size" ] || return
        rm -f "$tmp/book.raw"
        by_the_book "$tmp/book.raw" "$tmp/d.vhd" && cmp "$tmp/book.raw" "$tmp/model.raw" || return
        write_patterns "$tmp/d.vhd" vpc "$size" 5
        qemu-img convert -f vpc -O raw "$tmp/d.vhd" "$tmp/model.raw" || return
        blockmig verify -q --strict -F raw "$tmp/d.vhd" "$tmp/model.raw" || return
    done
}

# differencing STEPS: a chain of three, changed at its top.
differencing()
{
    local size=$(((RANDOM % 20000 + 1) * 512)) base kinds=(subformat=fixed block_size=2M block_size=4k)
    rm -f "$tmp"/c?.vhd "$tmp/model.raw" "$tmp/book.raw"
    base=${kinds[RANDOM % 3]}
    echo "size $size, base $base"
    "$driver" create vhd "$tmp/c0.vhd" "$size" "$base" &&
        "$driver" random vhd "$tmp/c0.vhd" "$tmp/model.raw" "$RANDOM" "$1" || return
    for i in 1 2 3; do
        "$driver" create vhd "$tmp/c$i.vhd" "$size" "block_size=$((4096 << RANDOM % 10))" "c$((i - 1)).vhd" vhd &&
            "$driver" random vhd "$tmp/c$i.vhd" "$tmp/model.raw" "$RANDOM" "$1" || return
    done
    by_the_book "$tmp/book.raw" "$tmp/c3.vhd" "$tmp/c2.vhd" "$tmp/c1.vhd" "$tmp/c0.vhd" &&
        cmp "$tmp/book.raw" "$tmp/model.raw" && blockmig verify -q --strict -F raw "$tmp/c3.vhd" "$tmp/model.raw"
}

pick 4 300
repeat "$REPLY" "random changes by us and by QEMU" changes 40
repeat "$REPLY" "random chains of differencing disks" differencing 30
done_testing
