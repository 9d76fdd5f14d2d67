#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Disks of a running machine move from block devices, to block devices, and from one to the other; what is left on the
# old device is the content of the switch, and nobody starts a machine from it by mistake.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_loop
need_free 1G

# disk_on DEVICE FORMAT SIZE: a disk with something on it.
disk_on()
{
    if [ "$2" = raw ]; then
        must dd if=/dev/zero of="$1" bs=1M count=64 conv=notrunc
    else
        must qemu-img create -q -f "$2" "$1" "$3"
    fi
    must qemu-io -f "$2" -c 'write -P 7 32M 8M' "$1"
}

# drivers NAME: of the file under the only disk's image, and of the image.
drivers()
{
    local nodes
    nodes=$(qmp "$1" '{"execute": "query-blockstats"}' | jq -c '.[0] | [.parent["node-name"], .["node-name"]]')
    qmp "$1" '{"execute": "query-named-block-nodes", "arguments": {"flat": true}}' | jq -r --argjson nodes "$nodes" \
        '. as $all | $nodes | map(. as $n | $all[] | select(.["node-name"] == $n) | .drv) | join(" ")'
}

# ---- from a device ----

# from_device NAME STYLE FORMAT [OPTION...]
from_device()
{
    local name=$1 style=$2 format=$3 target=$3 dev
    shift 3
    [ $# -lt 2 ] || target=$2
    mkdir -p "$tmp/$name.b" "$tmp/$name.s"
    used_device "$name" 72M
    dev=$REPLY
    [ "$format" != raw ] || must losetup --set-capacity "$dev"
    disk_on "$dev" "$format" 64M
    start_guest "$name" "$style" --disk "$dev:$format" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    fails_with 3 "$name: refused without a place for overlays" blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b/disk" \
        "${patient[@]}"
    like "$err" "$dev is a block device.*--scratch" "$name: and the reason is given"
    fails_with 3 "$name: a device cannot be deleted" blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b/disk" \
        "${patient[@]}" --scratch "$tmp/$name.s" --delete-source
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b/disk" "${patient[@]}" --scratch "$tmp/$name.s" --json "$@"
    is "$status" 0 "$name: moved"
    diag "$err"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/disk" "$target")" '^OK [1-9]' "$name: and the host agrees"
    is "$(files "$tmp/$name.b") $(files "$tmp/$name.s")" "disk  " "$name: nothing else is left"
    run_ok "$name: the device holds the content of the switch" blockmig verify -f "$format" "$dev" \
        --receipt "$(jq -r .receipt <<<"$out")"
    is "$(blockdev --getro "$dev")" 1 "$name: it is read-only"
    fails_with 1 "$name: nobody writes to it by mistake" qemu-io -f "$format" -c 'write 0 4k' "$dev"
}

from_device raw --libvirt-style raw
from_device qcow2 --drive-style qcow2 -O raw
from_device rawdrive --drive-style raw -O qcow2
from_device mirror --libvirt-style raw -O raw --method=mirror

# ---- to a device ----

# to_device NAME STYLE FORMAT SIZE DEVICE-SIZE [OPTION...]
to_device()
{
    local name=$1 style=$2 format=$3 size=$4 target=$3
    used_device "$name" "$5"
    dev=$REPLY
    shift 5
    [ $# -lt 2 ] || target=$2
    mkdir -p "$tmp/$name.a" "$tmp/$name.s"
    must qemu-img create -q -f "$format" "$tmp/$name.a/disk" "$size"
    must qemu-io -f "$format" -c 'write -P 7 8M 5M' -c 'write -z 9M 1M' "$tmp/$name.a/disk"
    start_guest "$name" "$style" --disk "$tmp/$name.a/disk:$format" --append 'span=8M flush=64 log=1'
    guest_wait_ready "$name"
    run blockmig move "qmp:$tmp/$name/qmp" "$dev" "${patient[@]}" --scratch "$tmp/$name.s" --json "$@"
    is "$status" 0 "$name: moved"
    told=$err
    diag "$told"
    is "$(drivers "$name")" "host_device $target" "$name: the machine runs on the device itself"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$dev" "$target")" '^OK [1-9]' "$name: and the host agrees"
    is "$(files "$tmp/$name.a") $(files "$tmp/$name.s")" "disk.blockmig-source  " "$name: nothing else is left"
    run_ok "$name: nothing of what the device held is to be seen" \
        qemu-io -r -f "$target" -c "read -P 0 13M $(($(numfmt --from=iec "$size") - (13 << 20)))" -c 'read -P 7 8M 1M' \
        -c 'read -P 0 9M 1M' -c 'read -P 7 10M 3M' "$dev"
    unlike "$out" 'failed' "$name: and all of the disk is"
    [ "$target" = raw ] || image_clean "$dev" "$name: qemu-img check finds nothing"
}

to_device traw --libvirt-style qcow2 32M 32M -O raw
to_device larger --drive-style raw 33299968 41M
like "$told" 'has 41 MiB, the disk 31.8 MiB' "larger: the difference is told"
run_ok "larger: what is behind the disk's end is zero" qemu-io -r -f raw -c 'read -P 0 33299968 9691648' "$dev"
to_device tqcow2 --libvirt-style raw 33299968 40M -O qcow2
to_device tmirror --libvirt-style qcow2 32M 40M -O qcow2 --method=mirror
# ---- a chain of devices ----

used_device below 32M
below=$REPLY
must dd if=/dev/zero of="$below" bs=1M count=32 conv=notrunc
must qemu-io -f raw -c 'write -P 1 20M 4M' "$below"
used_device above 48M
above=$REPLY
must qemu-img create -q -f qcow2 -F raw -b "$below" "$above"
must qemu-io -f qcow2 -c 'write -P 2 22M 4M' "$above"
sum=$(sha256sum <"$below")
start_guest chain --libvirt-style --disk "$above:qcow2" --append 'span=8M flush=64 log=1'
guest_wait_ready chain
mkdir "$tmp/chain.s" "$tmp/chain.b" "$tmp/chain.c"

# into FILE TARGET OPTION...: moves it on.
into()
{
    local target=$1
    shift
    run blockmig move "qmp:$tmp/chain/qmp" "$target" "${patient[@]}" --scratch "$tmp/chain.s" --json "$@"
    is "$status" 0 "chain: moved, $*"
    [ "$status" -eq 0 ] || diag "$err"
    is "$(guest_verdict chain)" OK "chain: the guest misses nothing"
    must guest_cmd chain start
    is "$(files "$tmp/chain.s")" "" "chain: no overlay is left"
    is "$(sha256sum <"$below")" "$sum" "chain: what it stood on is as it was"
}

into "$tmp/chain.b/top.qcow2" --chain=shallow
is "$(qemu-img info -U --output=json "$tmp/chain.b/top.qcow2" | jq -r '."backing-filename"')" "$below" \
    "chain: it names the device"
into "$tmp/chain.c/top.qcow2" --chain=keep
is "$(files "$tmp/chain.c")" "${below#/dev/} top.qcow2 " "chain: the device below has become a file"
fails_with 3 "chain: a device has no place for two layers" blockmig move "qmp:$tmp/chain/qmp" "$above" \
    --scratch "$tmp/chain.s" --chain=keep
must blockdev --setrw "$above"
into "$above" --chain=shallow
into "$tmp/chain.b/flat.raw" -O raw
stop_guest chain
like "$(host_verdict chain 0 "$tmp/chain.b/flat.raw" raw)" '^OK [1-9]' "chain: the host agrees"
run qemu-io -r -f raw -c 'read -P 1 20M 2M' -c 'read -P 2 22M 4M' -c 'read -P 0 26M 6M' "$tmp/chain.b/flat.raw"
unlike "$out$err" 'failed|open' "chain: all layers have come along"
done_testing
