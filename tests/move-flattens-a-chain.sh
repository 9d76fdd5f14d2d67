#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A disk with backing files becomes one image, in another format if asked; the backing files stay as they are.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# moved NAME STYLE FORMAT: a chain of three, with data that only the lower ones have.
moved()
{
    local name=$1 before
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f raw "$tmp/$name.a/low.raw" 64M
    must qemu-io -f raw -c 'write -P 1 40M 8M' "$tmp/$name.a/low.raw"
    must qemu-img create -q -f qcow2 -F raw -b low.raw "$tmp/$name.a/middle.qcow2"
    must qemu-io -f qcow2 -c 'write -P 2 44M 8M' -c 'write -z 41M 1M' "$tmp/$name.a/middle.qcow2"
    must qemu-img create -q -f qcow2 -F qcow2 -b middle.qcow2 "$tmp/$name.a/disk.qcow2"
    before=$(cd "$tmp/$name.a" && sha256sum low.raw middle.qcow2)
    start_guest "$name" "$2" --disk "$tmp/$name.a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json -O "$3"
    is "$status" 0 "$name: moved"
    [ "$status" -eq 0 ] || diag "$err"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/disk.qcow2" "$3")" '^OK [1-9]' "$name: and the host agrees"
    is "$(qemu-img info -U --output=json "$tmp/$name.b/disk.qcow2" | jq -r '."backing-filename" // "none"')" none \
        "$name: one image"
    run qemu-io -r -f "$3" -c 'read -P 1 40M 1M' -c 'read -P 0 41M 1M' -c 'read -P 1 42M 2M' -c 'read -P 2 44M 8M' \
        "$tmp/$name.b/disk.qcow2"
    unlike "$out" 'verification failed' "$name: what only the lower images had is there"
    is "$(cd "$tmp/$name.a" && sha256sum low.raw middle.qcow2)" "$before" "$name: the lower images are as they were"
    is "$(files "$tmp/$name.a")" "disk.qcow2.blockmig-source low.raw middle.qcow2 " "$name: nothing else is left"
    run_ok "$name: the kept source is a valid chain" qemu-img check "$tmp/$name.a/disk.qcow2.blockmig-source"
}

moved blockdev --libvirt-style raw
moved drive --drive-style qcow2
done_testing
