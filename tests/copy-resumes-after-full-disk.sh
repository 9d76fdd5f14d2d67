#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A target that fills up stops the copy in order; after space is made the same command finishes it.
. "${srcdir:-.}/tests/lib.sh"
need_loop
need_tool qemu-img jq python3

fill()
{
    dd if=/dev/zero of="$1/filler" bs=64K status=none
    sync
    return 0
}

# full_disk FILESYSTEM SIZE TARGET-FORMAT
full_disk()
{
    local what="$1, $3" mnt target pid
    small_filesystem "$1" "$2"
    mnt=$REPLY
    target=$mnt/disk
    "$blockmig" copy --bandwidth=12MiB/s -O "$3" "$tmp/source.qcow2" "$target" >"$tmp/log" 2>&1 3>&- </dev/null &
    pid=$!
    sleep 1
    fill "$mnt" 2>/dev/null
    wait "$pid"
    is $? 5 "$what: a full target ends with exit status 5 (resumable)"
    like "$(cat "$tmp/log")" "[Nn]o space|full" "$what: it says why"
    is "$(sha256sum <"$tmp/source.qcow2")" "$source_sum" "$what: the source is as it was"
    rm "$mnt/filler"
    check "$what: with space again the same command succeeds" \
        blockmig copy --json -O "$3" "$tmp/source.qcow2" "$target"
    is "$(jq -r .result <<<"$out")" done "$what: and says so"
    same_content "$tmp/source.qcow2" "$target" "$what: the copy is right"
    [ "$3" = raw ] || image_clean "$target" "$what: the image is clean"
}

must python3 "$srcdir/tests/make-qcow2.py" mixed "$tmp/source.qcow2" 64M 64M 3
source_sum=$(sha256sum <"$tmp/source.qcow2")
full_disk ext4 96M qcow2
full_disk ext4 96M raw
full_disk xfs 320M qcow2

# What cannot fit from the start is refused before anything is written.
small_filesystem ext4 16M
fails_with 3 "a target without the space is refused" blockmig copy "$tmp/source.qcow2" "$REPLY/disk"
check "it leaves nothing behind" test ! -e "$REPLY/disk"
done_testing
