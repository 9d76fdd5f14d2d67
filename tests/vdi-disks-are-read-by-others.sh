#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# VDIs that we write are read and found sound by QEMU, VDIs that QEMU writes are read by us; random changes by both in
# turns, and random chains of differencing disks, which QEMU does not know, against a reader of the specification.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io python3 jq
use_seed
driver=$builddir/tests/helpers/image-driver

for size in 512 1048576 20000256; do
    mixed_file "$tmp/source.raw" "$size" "$RANDOM"
    for options in subformat=dynamic subformat=fixed; do
        rm -f "$tmp/disk.vdi"
        run_ok "$size bytes, $options" blockmig copy -q -O vdi -o "$options" "$tmp/source.raw" "$tmp/disk.vdi"
        same_content "$tmp/source.raw" "$tmp/disk.vdi" "QEMU sees the same" -f raw -F vdi
        is "$(qemu-img info --output=json "$tmp/disk.vdi" | jq '."virtual-size"')" "$size" "and all of it"
        image_clean "$tmp/disk.vdi" "and finds it sound"
        run_ok "it is compared in place" blockmig verify -q --strict "$tmp/source.raw" "$tmp/disk.vdi"
    done
done
mixed_file "$tmp/odd.raw" 1000001 "$RANDOM"
run_ok "a disk that is no multiple of 512" blockmig copy -O vdi "$tmp/odd.raw" "$tmp/odd.vdi"
like "$err" "odd.vdi: the disk has 1000448 bytes where the source has 1000001: the rest is zeros" "is rounded up, and that is told"
printf x >>"$tmp/odd.raw"
run_ok "so is a fixed one" blockmig copy -q -O vdi -o subformat=fixed "$tmp/odd.raw" "$tmp/odd-fixed.vdi"
same_content "$tmp/odd.raw" "$tmp/odd-fixed.vdi" "which QEMU sees so" -f raw -F vdi

# ---- thin -------------------------------------------------------------------------------------------

truncate -s 64T "$tmp/huge.raw" 2>/dev/null || truncate -s 15T "$tmp/huge.raw"
printf x | dd of="$tmp/huge.raw" bs=1 seek=$((1 << 43)) conv=notrunc status=none
size=$(stat -c %s "$tmp/huge.raw")
run_ok "a VDI of $((size >> 40)) TiB" blockmig copy -q -O vdi "$tmp/huge.raw" "$tmp/huge.vdi"
check "needs no more than its map" test "$(allocated "$tmp/huge.vdi")" -lt $(((size >> 18) + (8 << 20)))
run_ok "and is the same disk" blockmig verify -q "$tmp/huge.raw" "$tmp/huge.vdi"
rm -f "$tmp/huge.raw" "$tmp/huge.vdi"
must truncate -s 64M "$tmp/spread.raw"
for i in $(seq 0 63); do
    printf x | dd of="$tmp/spread.raw" bs=1 seek=$(((i << 20) + 500000)) conv=notrunc status=none
done
run_ok "64 bytes in 64 blocks" blockmig copy -q -O vdi "$tmp/spread.raw" "$tmp/spread.vdi"
check "are thin inside of their blocks" test "$(allocated "$tmp/spread.vdi")" -lt $((8 << 20))
same_content "$tmp/spread.raw" "$tmp/spread.vdi" "QEMU sees the same" -f raw -F vdi

# ---- what QEMU writes -------------------------------------------------------------------------------

reads_what_qemu_writes vdi vdi static=off static=on

# ---- random changes ---------------------------------------------------------------------------------

# changes STEPS: ours, then QEMU's, then ours.
changes()
{
    local size=$(((RANDOM % 20000 + 1) * 512))
    rm -f "$tmp/d.vdi" "$tmp/model.raw"
    echo "size $size"
    if [ $((RANDOM % 3)) -eq 0 ]; then
        qemu-img create -q -f vdi "$tmp/d.vdi" "$size" || return
    else
        "$driver" create vdi "$tmp/d.vdi" "$size" subformat=dynamic || return
    fi
    for ((turn = 0; turn < 3; turn++)); do
        "$driver" random vdi "$tmp/d.vdi" "$tmp/model.raw" "$RANDOM" "$1" || return
        qemu-img check -q -f vdi "$tmp/d.vdi" && qemu-img compare -f vdi -F raw "$tmp/d.vdi" "$tmp/model.raw" || return
        write_patterns "$tmp/d.vdi" vdi "$size" 5
        qemu-img convert -f vdi -O raw "$tmp/d.vdi" "$tmp/model.raw" || return
        blockmig verify -q --strict -F raw "$tmp/d.vdi" "$tmp/model.raw" || return
    done
}

# differencing STEPS: a chain of four, changed at its top, in blocks of different sizes.
differencing()
{
    local size=$(((RANDOM % 20000 + 1) * 512)) kinds=(dynamic fixed) blocks=(4k 64k 1M 2M 4M 64M) block
    rm -f "$tmp"/c?.vdi "$tmp/model.raw" "$tmp/book.raw"
    echo "size $size"
    "$driver" create vdi "$tmp/c0.vdi" "$size" "subformat=${kinds[RANDOM % 2]}" &&
        "$driver" random vdi "$tmp/c0.vdi" "$tmp/model.raw" "$RANDOM" "$1" || return
    for i in 1 2 3; do
        block=${blocks[RANDOM % 6]}
        echo "layer $i in blocks of $block"
        "$driver" create vdi "$tmp/c$i.vdi" "$size" "subformat=dynamic,block_size=$block" "c$((i - 1)).vdi" vdi || return
        # Its parent's parents would have to be named, too: the chain below is what the model says already.
        cp "$tmp/model.raw" "$tmp/below.raw"
        "$driver" random vdi "$tmp/c$i.vdi" "$tmp/model.raw" "$RANDOM" "$1" raw:below.raw || return
    done
    python3 "$srcdir/tests/read-vdi.py" "$tmp/book.raw" "$tmp/c3.vdi" "$tmp/c2.vdi" "$tmp/c1.vdi" "$tmp/c0.vdi" &&
        cmp "$tmp/book.raw" "$tmp/model.raw" &&
        blockmig verify -q --strict -F raw --parent "$tmp/c2.vdi" --parent "$tmp/c1.vdi" --parent "$tmp/c0.vdi" \
            "$tmp/c3.vdi" "$tmp/model.raw"
}

pick 8 300
repeat "$REPLY" "random changes by us and by QEMU" changes 40
repeat "$REPLY" "random chains of differencing disks" differencing 30
done_testing
