#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted qcow2 images end to end: each is refused with format, field and value, in bounded time and memory,
# without opening any other file and without writing anything; or it reads as it should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"
need_tool qemu-img

hostile_images qcow2 100

# ---- raw disks that look like images ----------------------------------------------------------------

image=$images/backing-system.qcow2
run_ok "a raw disk whose guest wrote a qcow2 header is copied as raw if the user says so" \
    limited "$blockmig" copy -q -f raw -O raw "$image" "$tmp/copies/raw"
check "to the last byte" cmp "$image" "$tmp/copies/raw"
cp "$image" "$tmp/disk.raw"
must qemu-img create -q -f qcow2 -b disk.raw -F raw "$tmp/overlay.qcow2"
run_ok "and as raw if the overlay says so" limited "$blockmig" copy -q -O raw "$tmp/overlay.qcow2" "$tmp/copies/over"
check "to the last byte as well" cmp "$image" "$tmp/copies/over"

# ---- what must not be written to --------------------------------------------------------------------

mkdir "$tmp/shared"
cp "$images/shared.qcow2" "$tmp/shared"
must qemu-img create -q -f qcow2 -b shared.qcow2 -F qcow2 "$tmp/shared/overlay"
must qemu-io -f qcow2 -c "write -P 1 0 512" "$tmp/shared/overlay"
fails_with 3 "nothing is merged into an image with clusters that are used twice" blockmig commit "$tmp/shared/overlay"
like "$err" "has 1 damaged entries: host offset 0x5000 has refcount 1 but 2 users" "the message says where"
check "nor is given back what it does not use" cmp "$images/shared.qcow2" "$tmp/shared/shared.qcow2"

# ---- truncated at every sector ----------------------------------------------------------------------

cut_everywhere good qcow2
cut_everywhere bitmaps qcow2
cut_everywhere packed qcow2

# ---- changed while it is read -----------------------------------------------------------------------

must python3 "$srcdir/tests/make-qcow2.py" scattered "$tmp/live.qcow2" 64M 16M
must cp "$tmp/live.qcow2" "$tmp/kept.qcow2"

# during COMMAND...: runs while a slow copy of live.qcow2 is at work; sets status and err of the copy.
during()
{
    rm -f "$tmp/copies"/*
    limited "$blockmig" copy -q --bandwidth=8MiB/s -O raw "$tmp/live.qcow2" "$tmp/copies/live" \
        >"$tmp/live.log" 2>&1 3>&- &
    local pid=$!
    wait_for 10 compgen -G "$tmp/copies/*"
    sleep 0.5
    "$@"
    wait "$pid"
    status=$?
    err=$(cat "$tmp/live.log")
}
during mv "$images/good.qcow2" "$tmp/live.qcow2"
is "$status" 0 "an image that gets another file's name is still the one that was opened"
same_content "$tmp/kept.qcow2" "$tmp/copies/live" "and that one was copied" -f qcow2 -F raw
must cp "$tmp/kept.qcow2" "$tmp/live.qcow2"
during truncate -s +1M "$tmp/live.qcow2"
is "$status" 1 "an image that grows has been written to"
like "$err" "live.qcow2 was written to while it was copied" "and no copy of it is called proved"
check "nor named" test ! -e "$tmp/copies/live"
must cp "$tmp/kept.qcow2" "$tmp/live.qcow2"
during truncate -s 1M "$tmp/live.qcow2"
like "$err" "live.qcow2: the file ends before" "an image that shrinks is an error that names it"
is "$([ "$status" -gt 0 ] && [ "$status" -lt 7 ] && echo orderly)" orderly "which ends the copy (exit $status)"
check "and no target comes into being" test ! -e "$tmp/copies/live"
done_testing
