#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A copy onto itself is refused, by whatever name, and the source stays as it was.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io
use_seed

mkdir "$tmp/a" "$tmp/b"
make_pattern_image "$tmp/a/disk.qcow2" qcow2 8M 20
make_pattern_image "$tmp/a/top.qcow2" qcow2 8M 5 -b disk.qcow2 -F qcow2
sum=$(sha256sum "$tmp"/a/*)
ln "$tmp/a/disk.qcow2" "$tmp/b/hard.qcow2"
ln -s ../a/disk.qcow2 "$tmp/b/soft.qcow2"

refused()
{
    fails_with 3 "$1" blockmig copy --force "$2" "$3"
    is "$(sha256sum "$tmp"/a/*)" "$sum" "$1: nothing changed"
}

refused "the same path" "$tmp/a/disk.qcow2" "$tmp/a/disk.qcow2"
refused "the same file by another path" "$tmp/a/disk.qcow2" "$tmp/a/../a/disk.qcow2"
refused "a hard link" "$tmp/a/disk.qcow2" "$tmp/b/hard.qcow2"
refused "a symbolic link" "$tmp/a/disk.qcow2" "$tmp/b/soft.qcow2"
refused "its own directory" "$tmp/a/disk.qcow2" "$tmp/a"
refused "a backing file of the source" "$tmp/a/top.qcow2" "$tmp/a/disk.qcow2"
done_testing
