#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# VMDKs that we write, in one file and in many, are read by QEMU and by libvmdk; VMDKs that QEMU writes are read by
# us. Random changes, by both in turns; chains; several files take their names together.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq
use_seed
driver=$builddir/tests/helpers/image-driver
subformats=(monolithicSparse monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat streamOptimized)

# by_libvmdk IMAGE RAW: what libvmdk shows.
by_libvmdk()
{
    local same
    mkdir -p "$tmp/mnt"
    vmdkmount "$1" "$tmp/mnt" >/dev/null 2>&1 3>&- || return
    cmp "$tmp/mnt/vmdk1" "$2"
    same=$?
    # Whoever just looked at it may keep it busy for a moment.
    wait_for 10 fusermount -u "$tmp/mnt"
    return $same
}

# ---- whole copies -----------------------------------------------------------------------------------

for size in 512 1048576 20000256 40000000; do
    mixed_file "$tmp/source.raw" "$size" "$RANDOM"
    for subformat in "${subformats[@]}"; do
        rm -f "$tmp"/disk*.vmdk "$tmp/back.raw"
        run_ok "$size bytes, $subformat" blockmig copy -q -O vmdk -o "subformat=$subformat" "$tmp/source.raw" "$tmp/disk.vmdk"
        same_content "$tmp/source.raw" "$tmp/disk.vmdk" "QEMU sees the same" -f raw -F vmdk
        run_ok "and finds it clean" qemu-img check -q -f vmdk "$tmp/disk.vmdk"
        is "$(qemu-img info --output=json "$tmp/disk.vmdk" | jq -r '."format-specific".data."create-type"')" "$subformat" \
            "and what it is"
        run_ok "we see the same" blockmig verify -q --strict "$tmp/source.raw" "$tmp/disk.vmdk"
        # libvmdk does not mount monolithicFlat, of whomever.
        [ "$subformat" = monolithicFlat ] || [ ! -e /dev/fuse ] || ! command -v vmdkmount >/dev/null ||
            check "libvmdk sees the same" by_libvmdk "$tmp/disk.vmdk" "$tmp/source.raw"
    done
done
mixed_file "$tmp/odd.raw" 1000001 "$RANDOM"
run_ok "a disk that is no multiple of 512" blockmig copy -O vmdk "$tmp/odd.raw" "$tmp/odd.vmdk"
like "$err" "odd.vmdk: the disk has 1000448 bytes where the source has 1000001: the rest is zeros" "is rounded up, and that is told"
truncate -s +5000 "$tmp/odd.raw" # so the last grains are zeros but for the very last one
printf x >>"$tmp/odd.raw"
for grain in 512 64k; do
    run_ok "so is a stream with grains of $grain" blockmig copy -q -O vmdk \
        -o "subformat=streamOptimized,grain_size=$grain" "$tmp/odd.raw" "$tmp/odd-$grain.vmdk"
    same_content "$tmp/odd.raw" "$tmp/odd-$grain.vmdk" "which QEMU sees so" -f raw -F vmdk
done
truncate -s 7G "$tmp/large.raw"
for at in 2146435071 2146435072 4292870143 7516192767; do
    printf '%s' "$at" | dd of="$tmp/large.raw" bs=1 seek="$at" conv=notrunc status=none
done
truncate -s 7G "$tmp/large.raw"
for subformat in "${subformats[@]}"; do
    rm -f "$tmp"/large*.vmdk
    run_ok "7 GiB, $subformat" blockmig copy -q -O vmdk -o "subformat=$subformat" "$tmp/large.raw" "$tmp/large.vmdk"
    same_content "$tmp/large.raw" "$tmp/large.vmdk" "QEMU sees the same" -f raw -F vmdk
    check "and it is thin" test "$(cat < <(du -ck "$tmp"/large*.vmdk) | tail -1 | cut -f1)" -lt 8192
done

# ---- several files ----------------------------------------------------------------------------------

mkdir "$tmp/several"
run_ok "a split disk" blockmig copy -q -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/large.raw" "$tmp/several/a.vmdk"
is "$(ls "$tmp/several" | tr '\n' ' ')" "a-s001.vmdk a-s002.vmdk a-s003.vmdk a-s004.vmdk a.vmdk " "has the names that it should"
run_ok "the same command again finds it there" \
    blockmig copy -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/large.raw" "$tmp/several/a.vmdk"
mkdir "$tmp/occupied"
echo mine >"$tmp/occupied/a-s003.vmdk"
fails_with 3 "a file that would be overwritten is in the way" \
    blockmig copy -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/large.raw" "$tmp/occupied/a.vmdk"
like "$err" "a-s003.vmdk exists already" "it is named"
is "$(ls "$tmp/occupied")" a-s003.vmdk "and nothing is written"
run_ok "--force replaces it" \
    blockmig copy -q --force -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/large.raw" "$tmp/occupied/a.vmdk"
same_content "$tmp/large.raw" "$tmp/occupied/a.vmdk" "and it is right" -f raw -F vmdk
fails_with 3 "a copy onto the source's own extents" \
    blockmig copy --force -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/several/a.vmdk" "$tmp/several/a.vmdk"
mv "$tmp/several/a.vmdk" "$tmp/several/b.vmdk"
fails_with 3 "or onto them by another name of the descriptor" \
    blockmig copy --force -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/several/b.vmdk" "$tmp/several/a.vmdk"
like "$err" "a-s001.vmdk are the same file" "is refused"
run_ok "the source is deleted with its extents" \
    blockmig copy -q --delete-source -O raw "$tmp/several/b.vmdk" "$tmp/deleted.raw"
is "$(ls "$tmp/several")" "" "all of them"
rm -f "$tmp"/large* "$tmp/deleted.raw" "$tmp/occupied"/*
# Files that begin in the middle of a grain of the disk would hide what the parent has in the rest of it.
must qemu-img create -q -f vmdk "$tmp/wide.vmdk" 3G
must qemu-io -f vmdk -c 'write -q -P 5 2040M 16M' "$tmp/wide.vmdk"
must qemu-img create -q -f vmdk -b wide.vmdk -F vmdk "$tmp/over.vmdk"
must qemu-io -f vmdk -c 'write -q -P 9 2146435072 64k' "$tmp/over.vmdk"
mkdir "$tmp/grains"
run_ok "a child of several files with grains of 2 MiB" blockmig copy -q --chain=keep \
    -o subformat=twoGbMaxExtentSparse,grain_size=2M "$tmp/over.vmdk" "$tmp/grains/"
same_content "$tmp/over.vmdk" "$tmp/grains/over.vmdk" "shows what the parent has beside them" -f vmdk -F vmdk

fails_with 3 "a stream has no parent" blockmig copy --chain=keep -O vmdk -o subformat=streamOptimized \
    "$(qemu-img create -q -f qcow2 "$tmp/b.qcow2" 1M && qemu-img create -q -f qcow2 -b b.qcow2 -F qcow2 "$tmp/o.qcow2" && echo "$tmp/o.qcow2")" "$tmp/occupied/o.vmdk"
like "$err" "streamOptimized cannot have a parent" "the message says so"
truncate -s 3T "$tmp/huge.raw"
fails_with 3 "3 TiB in one sparse file" blockmig copy -O vmdk "$tmp/huge.raw" "$tmp/huge.vmdk"
like "$err" "3298534883328 bytes is too large for subformat monolithicSparse" "with the size"
run_ok "in pieces" blockmig copy -q -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/huge.raw" "$tmp/occupied/huge.vmdk"
run_ok "it is right" blockmig verify -q "$tmp/huge.raw" "$tmp/occupied/huge.vmdk"
rm -rf "$tmp/huge.raw" "$tmp/occupied"

# ---- chains -----------------------------------------------------------------------------------------

mkdir "$tmp/chain" "$tmp/kept"
make_pattern_image "$tmp/chain/0.qcow2" qcow2 12M 30
for i in 1 2; do
    make_pattern_image "$tmp/chain/$i.qcow2" qcow2 12M 15 -b $((i - 1)).qcow2 -F qcow2
done
for options in subformat=monolithicSparse zeroed_grain=on subformat=twoGbMaxExtentSparse,grain_size=4k; do
    rm -f "$tmp/kept"/*
    run_ok "a chain of qcow2 becomes one of VMDK: $options" \
        blockmig copy -q --chain=keep -O vmdk -o "$options" "$tmp/chain/2.qcow2" "$tmp/kept/2.vmdk"
    same_content "$tmp/chain/2.qcow2" "$tmp/kept/2.vmdk" "QEMU sees the same through it" -F vmdk
    is "$(blockmig info --json "$tmp/kept/2.vmdk" | jq -c '[.chain[].format]')" '["vmdk","vmdk","vmdk"]' "all of it is"
done
must qemu-io -f vmdk -c "write 0 512" "$tmp/kept/0.qcow2"
fails_with 3 "who writes to its base breaks it" blockmig map "$tmp/kept/2.vmdk"
like "$err" "parentCID is" "and that is seen"

# ---- create and commit --------------------------------------------------------------------------------

mkdir "$tmp/made"
run_ok "a flat disk is created" blockmig create -q -O vmdk -o subformat=monolithicFlat "$tmp/made/base.vmdk" 5G
run_ok "and a delta in pieces over it" \
    blockmig create -q -O vmdk -o subformat=twoGbMaxExtentSparse --parent "$tmp/made/base.vmdk" "$tmp/made/child.vmdk"
is "$(ls "$tmp/made" | tr '\n' ' ')" "base-flat.vmdk base.vmdk child-s001.vmdk child-s002.vmdk child-s003.vmdk child.vmdk " \
    "with all their files"
must qemu-io -f vmdk -c "write -P 7 3G 1M" -c "write -P 8 0 4k" "$tmp/made/child.vmdk"
fails_with 3 "nothing is created over what is there" blockmig create -O vmdk -o subformat=monolithicFlat "$tmp/made/child-s002.vmdk" 1G
echo mine >"$tmp/made/x-s002.vmdk"
fails_with 3 "also of the files beside it" blockmig create -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/made/x.vmdk" 3G
is "$(ls "$tmp/made"/x*)" "$tmp/made/x-s002.vmdk" "and what was begun does not stay"
run_ok "the delta is merged" blockmig commit -q --delete-source "$tmp/made/child.vmdk"
is "$(ls "$tmp/made" | tr '\n' ' ')" "base-flat.vmdk base.vmdk x-s002.vmdk " "and gone with its files"
check "the base has it" qemu-io -f vmdk -c "read -P 7 3G 1M" -c "read -P 8 0 4k" -c "read -P 0 4k 1M" "$tmp/made/base.vmdk"

# ---- random changes ---------------------------------------------------------------------------------

# changes STEPS: ours, then QEMU's, then ours, in one disk.
changes()
{
    local size=$(((RANDOM % 20000 + 1) * 512)) options="subformat=${subformats[RANDOM % 4]}"
    [[ $options == *Flat ]] || options+=,grain_size=$((4096 << RANDOM % 6)),zeroed_grain=$([ $((RANDOM % 2)) = 0 ] && echo on || echo off)
    rm -f "$tmp"/d*.vmdk "$tmp/model.raw"
    echo "size $size, $options"
    if [ $((RANDOM % 3)) -eq 0 ]; then
        qemu-img create -q -f vmdk -o "${options/,grain*/}" "$tmp/d.vmdk" "$size" || return
    else
        "$driver" create vmdk "$tmp/d.vmdk" "$size" "$options" || return
    fi
    for ((turn = 0; turn < 3; turn++)); do
        "$driver" random vmdk "$tmp/d.vmdk" "$tmp/model.raw" "$RANDOM" "$1" || return
        qemu-img compare -f vmdk -F raw "$tmp/d.vmdk" "$tmp/model.raw" && qemu-img check -q -f vmdk "$tmp/d.vmdk" &&
            "$driver" check vmdk "$tmp/d.vmdk" look || return
        write_patterns "$tmp/d.vmdk" vmdk "$size" 5
        qemu-img convert -f vmdk -O raw "$tmp/d.vmdk" "$tmp/model.raw" || return
        blockmig verify -q --strict -F raw "$tmp/d.vmdk" "$tmp/model.raw" || return
    done
}

# deltas STEPS: a chain of four, each changed when it is the top.
deltas()
{
    local size=$(((RANDOM % 20000 + 1) * 512)) options
    rm -f "$tmp"/c*.vmdk "$tmp/model.raw"
    options=subformat=${subformats[RANDOM % 4]}
    echo "size $size, base $options"
    "$driver" create vmdk "$tmp/c0.vmdk" "$size" "$options" &&
        "$driver" random vmdk "$tmp/c0.vmdk" "$tmp/model.raw" "$RANDOM" "$1" || return
    for i in 1 2 3; do
        options=grain_size=$((512 << RANDOM % 8)),subformat=${subformats[RANDOM % 2 * 2]}
        "$driver" create vmdk "$tmp/c$i.vmdk" "$size" "$options,zeroed_grain=$([ $((RANDOM % 2)) = 0 ] && echo on || echo off)" \
            "c$((i - 1)).vmdk" vmdk && "$driver" random vmdk "$tmp/c$i.vmdk" "$tmp/model.raw" "$RANDOM" "$1" || return
    done
    qemu-img compare -f vmdk -F raw "$tmp/c3.vmdk" "$tmp/model.raw" &&
        blockmig verify -q --strict -F raw "$tmp/c3.vmdk" "$tmp/model.raw"
}

# What QEMU leaves of a descriptor when the content id that it writes begins with zeros: 1 in 256 of its first changes.
must "$driver" create vmdk "$tmp/short.vmdk" 4194304 subformat=twoGbMaxExtentSparse
must qemu-io -f vmdk -c 'write -P 5 1M 64k' "$tmp/short.vmdk"
must python3 -c 'import re, sys
old = open(sys.argv[1], "rb").read()
new = re.sub(rb"(?m)^CID=[0-9a-f]+$", b"CID=ab", old.rstrip(b"\0"), count=1) + b"\0"
assert old[len(new)] != 0
open(sys.argv[1], "wb").write(new + old[len(new):])' "$tmp/short.vmdk"
must qemu-img convert -f vmdk -O raw "$tmp/short.vmdk" "$tmp/short.raw"
check "a descriptor that QEMU shortened" blockmig verify -q --strict -F raw "$tmp/short.vmdk" "$tmp/short.raw"

pick 4 300
repeat "$REPLY" "random changes by us and by QEMU" changes 40
repeat "$REPLY" "random chains of deltas" deltas 30
done_testing
