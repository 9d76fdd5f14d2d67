#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A raw image whose size is no multiple of 4096 runs without the host's cache, however empty its beginning is: QEMU asks
# the first block what O_DIRECT wants, and a hole does not tell.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io qemu-system-x86_64
cd "$tmp" || exit
size=$(((20 << 20) + 1536))

# starts FILE: or QEMU refuses it.
starts()
{
    echo quit | timeout 100 qemu-system-x86_64 -accel tcg -nodefaults -display none -S -monitor stdio \
        -drive "if=virtio,format=raw,cache=none,file=$1"
}

# runs FILE WHAT
runs()
{
    starts "$1" >"$tmp/said" 2>&1
    is "$?" 0 "$2" || diag "$(cat "$tmp/said")"
}

run_ok "an empty image" blockmig create -q -O raw empty.raw $size
runs empty.raw "runs"
run_ok "one with its space reserved" blockmig create -q -O raw -o preallocation=falloc reserved.raw $size
runs reserved.raw "runs"

truncate -s $size hole.raw
run_ok "a copy of nothing" blockmig copy -q hole.raw copy.raw
runs copy.raw "runs"
is "$(($(allocated copy.raw) <= 65536))" 1 "and is thin"

must qemu-img create -q -f qcow2 -F raw -b copy.raw overlay.qcow2
must qemu-io -f qcow2 -c "write -z 0 1M" overlay.qcow2
run_ok "zeros are merged into it" blockmig commit -q overlay.qcow2
runs copy.raw "and it runs"
done_testing
