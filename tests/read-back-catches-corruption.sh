#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A target that stores one byte wrongly and reports success: only reading back can see that.
. "${srcdir:-.}/tests/lib.sh"
need_fuse
need_tool jq cmp

random_file "$tmp/source" 4M 12
place=$((2 * 1048576 + 4567))
export PLACE=$place

# liar: a fresh block device of 4 MiB that flips a bit of what is written to PLACE; sets REPLY.
liar()
{
    rm -f "$tmp/medium"
    truncate -s 4M "$tmp/medium"
    export MEDIUM="$tmp/medium"
    fuse_file eval get_size='stat -Lc %s "$MEDIUM"' can_write='exit 0' can_flush='exit 0' flush='exit 0' \
        pread='dd if="$MEDIUM" skip=$4 count=$3 iflag=count_bytes,skip_bytes,fullblock bs=65536 status=none' \
        pwrite='dd of="$MEDIUM" seek=$4 oflag=seek_bytes iflag=fullblock bs=65536 conv=notrunc status=none || exit 1
            if [ $4 -le $PLACE ] && [ $(($4 + $3)) -gt $PLACE ]; then
                old=$(od -An -tu1 -j $PLACE -N 1 "$MEDIUM")
                printf "\\$(printf %03o $((old ^ 1)))" |
                    dd of="$MEDIUM" seek=$PLACE oflag=seek_bytes conv=notrunc status=none
            fi'
    # Without direct I/O the loop device would answer from the page cache of the file.
    loop_device "$REPLY" --direct-io=on
}

for verify in full written; do
    liar
    fails_with 6 "--verify=$verify finds it" \
        blockmig copy --restart --force --verify=$verify -f raw -O raw "$tmp/source" "$REPLY"
    like "$err" "differ|not what was written" "--verify=$verify says that it differs"
    verdict=far
    for number in $(grep -oE '[0-9]{6,}' <<<"$err"); do
        [ "$number" -le "$place" ] && [ $((place - number)) -lt $((2 << 20)) ] && verdict=near
    done
    is "$verdict" near "--verify=$verify names the place"
done

# The test is about the reading back: without it nobody can know.
liar
run_ok "--verify=none cannot see it" blockmig copy --restart --force --verify=none -f raw -O raw "$tmp/source" "$REPLY"
fails_with 1 "verify finds it later" blockmig verify -f raw -F raw "$tmp/source" "$REPLY"
done_testing
