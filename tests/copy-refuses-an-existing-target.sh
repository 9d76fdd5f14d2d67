#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What is there is not overwritten, unless --force says so; and then all of it is.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io
use_seed

make_pattern_image "$tmp/disk.qcow2" qcow2 8M 20
mkdir "$tmp/datastore"
random_file "$tmp/datastore/disk.qcow2" 20M 1
sum=$(sha256sum <"$tmp/datastore/disk.qcow2")
fails_with 3 "an existing file" blockmig copy "$tmp/disk.qcow2" "$tmp/datastore/disk.qcow2"
fails_with 3 "the file of this name in a datastore" blockmig copy "$tmp/disk.qcow2" "$tmp/datastore"
fails_with 3 "plan refuses as well" blockmig plan copy "$tmp/disk.qcow2" "$tmp/datastore"
is "$(sha256sum <"$tmp/datastore/disk.qcow2")" "$sum" "it is as it was"
check "plan --force changes nothing" blockmig plan copy --force "$tmp/disk.qcow2" "$tmp/datastore"
is "$(sha256sum <"$tmp/datastore/disk.qcow2")" "$sum" "it is still as it was"
check "--force replaces it" blockmig copy --force "$tmp/disk.qcow2" "$tmp/datastore"
same_content "$tmp/disk.qcow2" "$tmp/datastore/disk.qcow2" "with the copy"
image_clean "$tmp/datastore/disk.qcow2" "that is clean"

# The zeros of the source have to replace what was there in a raw target as well.
random_file "$tmp/old" 8M 2
check "a raw file full of old data" blockmig copy --force -O raw "$tmp/disk.qcow2" "$tmp/old"
same_content "$tmp/disk.qcow2" "$tmp/old" "holds only the copy" -F raw

fails_with 3 "a directory that does not exist" blockmig copy "$tmp/disk.qcow2" "$tmp/nowhere/disk.qcow2"
mkfifo "$tmp/fifo"
fails_with 3 "a FIFO as target" timeout 10 "$blockmig" copy --force "$tmp/disk.qcow2" "$tmp/fifo"
fails_with 3 "a FIFO as source" timeout 10 "$blockmig" copy "$tmp/fifo" "$tmp/x.qcow2"
done_testing
