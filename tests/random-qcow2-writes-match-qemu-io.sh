#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Thousands of random writes, zeros, discards, packed clusters, flushes and reopenings through our driver, on
# images that we or QEMU created and that QEMU has scribbled on: qemu-img must find the content of a plain model
# in them, and no error and no leak.  Then QEMU writes to what we left, and we must agree again.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io

driver=$builddir/tests/helpers/image-driver
use_seed
pick 60 2000
steps=$REPLY

scribble()
{
    local image=$1 size=$2 i offset length
    for ((i = 0; i < 20; i++)); do
        length=$(((RANDOM % 200 + 1) * 512))
        offset=$((((RANDOM << 15 | RANDOM) % ((size - length) / 512)) * 512))
        case $((RANDOM % 5)) in
        0) echo "write -z $offset $length" ;;
        1) echo "discard $offset $length" ;;
        *) echo "write -P $((RANDOM % 255 + 1)) $offset $length" ;;
        esac
    done | qemu-io -f qcow2 "$image" >/dev/null
}

agree()
{
    qemu-img check -q -f qcow2 "$tmp/d.qcow2" && qemu-img compare -q -f qcow2 -F raw "$tmp/d.qcow2" "$tmp/model.raw" &&
        "$driver" check qcow2 "$tmp/d.qcow2" look
}

# try SIZE OPTIONS: disks of ours and of QEMU's, with and without a backing file; two of these four, all in check-long.
try()
{
    local size=$1 options=$2 case who backing arguments what
    some 2 ours-none ours-base theirs-none theirs-base
    for case in "${chosen[@]}"; do
        who=${case%-*} backing=${case#*-}
        what="$options, created by $who, backing: $backing"
        rm -f "$tmp"/*.qcow2 "$tmp"/*.raw
        arguments=()
        if [ "$backing" = base ]; then
            qemu-img create -q -f qcow2 "$tmp/base.qcow2" $((size - 1000448))
            scribble "$tmp/base.qcow2" $((size - 1000448))
            arguments=(base.qcow2 qcow2)
        fi
        if [ "$who" = ours ]; then
            "$driver" create qcow2 "$tmp/d.qcow2" "$size" "$options" "${arguments[@]}"
        else
            qemu-img create -q -f qcow2 -o "$options" ${arguments[0]:+-b base.qcow2 -F qcow2} "$tmp/d.qcow2" "$size"
            scribble "$tmp/d.qcow2" "$size"
        fi
        if "$driver" random qcow2 "$tmp/d.qcow2" "$tmp/model.raw" $((RANDOM << 15 | RANDOM)) "$steps" && agree; then
            ok "$what"
        else
            not_ok "$what (seed $seed)"
            continue
        fi
        scribble "$tmp/d.qcow2" "$size"
        "$driver" random qcow2 "$tmp/d.qcow2" "$tmp/model.raw" "$RANDOM" 20 && agree && continue
        not_ok "$what, after QEMU wrote to it again (seed $seed)"
    done
}

try 3000832 cluster_size=512
try 3000832 cluster_size=1k,compat=0.10
for cluster in 4k 16k 64k 256k 2M; do
    try 9000448 "cluster_size=$cluster"
    try 9000448 "cluster_size=$cluster,compat=0.10"
done
for cluster in 16k 64k 128k 2M; do
    try 9000448 "cluster_size=$cluster,extended_l2=on"
done
for bits in 1 2 4 8 32 64; do
    try 5000704 "cluster_size=1k,refcount_bits=$bits"
done
try 9000448 cluster_size=32k,compression_type=zstd,lazy_refcounts=on
try 9000448 cluster_size=32k,compression_type=zstd,extended_l2=on,refcount_bits=1

# What an internal snapshot shares is copied before it changes.
for options in cluster_size=4k cluster_size=16k,extended_l2=on; do
    rm -f "$tmp"/*.qcow2 "$tmp"/*.raw
    qemu-img create -q -f qcow2 -o "$options" "$tmp/d.qcow2" 9000448
    scribble "$tmp/d.qcow2" 9000448
    qemu-img convert -f qcow2 -O raw "$tmp/d.qcow2" "$tmp/before.raw"
    qemu-img snapshot -c one "$tmp/d.qcow2"
    "$driver" random qcow2 "$tmp/d.qcow2" "$tmp/model.raw" "$RANDOM" "$steps" && agree &&
        qemu-img convert -f qcow2 -l one -O raw "$tmp/d.qcow2" "$tmp/after.raw" &&
        cmp "$tmp/before.raw" "$tmp/after.raw"
    is $? 0 "$options: a snapshot keeps its content (seed $seed)"
done

# Bitmaps do not know what we change: their promise is withdrawn.
qemu-img create -q -f qcow2 "$tmp/bitmap.qcow2" 4M
qemu-img bitmap --add "$tmp/bitmap.qcow2" dirty
"$driver" random qcow2 "$tmp/bitmap.qcow2" "$tmp/model.raw" "$RANDOM" 5
run qemu-img info "$tmp/bitmap.qcow2"
unlike "$out" "name: dirty" "a bitmap that cannot be kept up to date is invalid"

# preallocation: every mode, and what QEMU thinks of it.
for how in metadata falloc full; do
    for more in "" ,extended_l2=on ,cluster_size=4k; do
        rm -f "$tmp/d.qcow2" "$tmp/model.raw"
        "$driver" create qcow2 "$tmp/d.qcow2" 20000768 "preallocation=$how$more" && truncate -s 20000768 "$tmp/model.raw" && agree
        is $? 0 "preallocation=$how$more"
    done
done
allocated=$(stat -c %b "$tmp/d.qcow2")
is $((allocated * 512 >= 20000768)) 1 "preallocation=full takes the space"

done_testing
