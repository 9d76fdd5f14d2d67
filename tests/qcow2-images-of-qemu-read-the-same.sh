#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Images that qemu-img and qemu-io make with every combination of options that changes the layout are read
# back by our driver exactly as qemu-img reads them.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io

driver=$builddir/tests/helpers/image-driver
seed=${BLOCKMIG_SEED:-$$}
diag "seed $seed"
RANDOM=$seed

# Data, zeros, discards and holes at random places of a disk of $2 bytes.
scribble()
{
    local image=$1 size=$2 i offset length
    for ((i = 0; i < 40; i++)); do
        length=$(((RANDOM % 200 + 1) * 512))
        offset=$((((RANDOM << 15 | RANDOM) * 512) % (size - length)))
        offset=$((offset / 512 * 512))
        case $((RANDOM % 6)) in
        0) echo "write -z $offset $length" ;;
        1) echo "write -z -u $offset $length" ;;
        2) echo "discard $offset $length" ;;
        *) echo "write -P $((RANDOM % 255 + 1)) $offset $length" ;;
        esac
    done | qemu-io -f qcow2 "$image" >/dev/null
}

# same IMAGE WHAT
same()
{
    rm -f "$tmp/ours.raw" "$tmp/theirs.raw"
    if qemu-img convert -f qcow2 -O raw "$1" "$tmp/theirs.raw" && "$driver" read qcow2 "$1" "$tmp/ours.raw" &&
        cmp "$tmp/ours.raw" "$tmp/theirs.raw"; then
        ok "$2"
    else
        not_ok "$2 (seed $seed)"
    fi
}

# try SIZE OPTIONS: alone, over a shorter backing file, over a longer one, and packed.
try()
{
    local size=$1 options=$2
    rm -f "$tmp"/*.qcow2
    qemu-img create -q -f qcow2 -o "$options" "$tmp/base.qcow2" "$size"
    scribble "$tmp/base.qcow2" "$size"
    same "$tmp/base.qcow2" "$options"
    [[ $options == *preallocation* ]] && return
    qemu-img create -q -f qcow2 -o "$options" -b base.qcow2 -F qcow2 "$tmp/top.qcow2" $((size + 1234432))
    scribble "$tmp/top.qcow2" $((size + 1234432))
    same "$tmp/top.qcow2" "$options, longer than its backing file"
    rm "$tmp/top.qcow2"
    qemu-img create -q -f qcow2 -o "$options" -b base.qcow2 -F qcow2 "$tmp/top.qcow2" $((size - 1234432))
    scribble "$tmp/top.qcow2" $((size - 1234432))
    same "$tmp/top.qcow2" "$options, shorter than its backing file"
    qemu-img convert -c -O qcow2 -o "$options" "$tmp/base.qcow2" "$tmp/packed.qcow2"
    same "$tmp/packed.qcow2" "$options, compressed"
    scribble "$tmp/packed.qcow2" "$size"
    same "$tmp/packed.qcow2" "$options, compressed and written to"
}

for cluster in 512 4k 64k 2M; do
    for options in compat=0.10 compat=1.1 compat=1.1,lazy_refcounts=on; do
        try $((5 * 1024 * 1024 + 1536)) "cluster_size=$cluster,$options"
    done
    try 9000448 "cluster_size=$cluster,compression_type=zstd"
done
for bits in 1 2 4 8 32 64; do
    try 7340032 "cluster_size=4k,refcount_bits=$bits"
done
for cluster in 16k 64k 128k 2M; do
    try 9000448 "cluster_size=$cluster,extended_l2=on"
    try 9000448 "cluster_size=$cluster,extended_l2=on,compression_type=zstd"
done
for how in metadata falloc full; do
    try 9000448 "preallocation=$how"
    try 9000448 "preallocation=$how,extended_l2=on"
done

# Snapshots share clusters with the active disk, and are announced.
qemu-img create -q -f qcow2 -o cluster_size=4k "$tmp/snap.qcow2" 16M
scribble "$tmp/snap.qcow2" $((16 << 20))
qemu-img snapshot -c one "$tmp/snap.qcow2"
scribble "$tmp/snap.qcow2" $((16 << 20))
same "$tmp/snap.qcow2" "an image with an internal snapshot"

done_testing
