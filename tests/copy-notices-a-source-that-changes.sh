#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Who writes to a disk without taking its lock while it is copied gets no copy that is called proved, and who puts
# another file in its place does not lose that by --delete-source.
. "${srcdir:-.}/tests/lib.sh"
cd "$tmp" || exit
mkdir new

# meanwhile COMMAND: once about half of the disk is copied. Sets status and err.
meanwhile()
{
    local change=$1
    shift
    "$builddir/tools/blockmig" copy -v --bandwidth=16MiB/s "$@" >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
    wait_for 20 grep -q '^blockmig: base' "$tmp/err"
    sleep 1
    eval "$change"
    wait $!
    status=$?
    err=$(cat "$tmp/err")
}

random_file disk.raw 32M 1
meanwhile 'printf X | dd of=disk.raw bs=1 seek=1000 conv=notrunc status=none' disk.raw new/
is "$status" 1 "a disk that is written to"
like "$err" "disk.raw was written to while it was copied" "is told"
check "and has no copy" test ! -e new/disk.raw
run_ok "the same command again" blockmig copy disk.raw new/
like "$err" "starting over" "begins anew"
check "and copies it" cmp disk.raw new/disk.raw

rm new/disk.raw
meanwhile 'rm disk.raw; echo other >disk.raw' --delete-source disk.raw new/
is "$status" 1 "a disk that another file has replaced"
like "$err" "disk.raw is another file now" "is told"
is "$(cat disk.raw)" other "and the other file is not deleted"

must qemu-img convert -f raw -O qcow2 new/disk.raw base.qcow2
rm new/disk.raw
must qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 top.qcow2
meanwhile 'touch base.qcow2' --chain=keep top.qcow2 new/
is "$status" 1 "a layer that is written to"
like "$err" "base.qcow2 was written to while it was copied" "is told by its name"
done_testing
