#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What cannot be moved is refused with the reason, before anything is changed; and a plan changes nothing either.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# all_files: every file of the datastores with its inode, which an exchange of names would change.
all_files()
{
    (cd "$tmp" && find a b -printf '%p %i\n' | LC_ALL=C sort)
}

# refused WHAT PATTERN ARGUMENT...: exit 3 and nothing changed.
refused()
{
    local what=$1 pattern=$2
    shift 2
    run blockmig move "$@"
    is "$status" 3 "refused: $what"
    like "$err" "$pattern" "and the reason is given"
    is "$(all_files)" "$before" "and nothing was changed"
}

mkdir "$tmp/a" "$tmp/b" "$tmp/small"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-img create -q -f raw "$tmp/a/read.raw" 1M
must qemu-img create -q -f raw "$tmp/a/busy.raw" 64M
must qemu-img create -q -f raw "$tmp/a/shared.raw" 1M
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --disk "$tmp/a/busy.raw:raw" \
    --append 'span=8M disks=1 log=1' -- \
    -blockdev "driver=file,node-name=read-file,filename=$tmp/a/read.raw,read-only=on" \
    -blockdev driver=raw,node-name=read,file=read-file,read-only=on -device virtio-blk-pci,id=vdr,drive=read \
    -blockdev "driver=file,node-name=shared-file,filename=$tmp/a/shared.raw,locking=off" \
    -blockdev driver=raw,node-name=shared,file=shared-file \
    -device virtio-blk-pci,id=vds,drive=shared,share-rw=on
guest_wait_ready g
socket=qmp:$tmp/g/qmp
before=$(all_files)

refused "a format that machines do not run on" "not moved to format vhd" --disk vd0 -O vhd "$socket" "$tmp/b/"
refused "a disk that is not there" 'no disk is called "vd7"' "$socket" "$tmp/b" --disk vd7
refused "a read-only disk" 'vdr.*read-only' "$socket" "$tmp/b" --disk vdr
refused "a shared disk" 'vds.*shared' "$socket" "$tmp/b" --disk vds
refused "a machine with a shared disk, if none is chosen" 'vds.*--disk' "$socket" "$tmp/b"
refused "the same disk twice" 'twice' "$socket" "$tmp/b" --disk vd0 --disk vd0
refused "a target that is the source" 'exists already' "$socket" "$tmp/a" --disk vd0
refused "a directory that is not there" 'nowhere.*no such directory' "$socket" "$tmp/nowhere/" --disk vd0
refused "one file for two disks" 'not a directory' "$socket" "$tmp/b/one.qcow2" --disk vd0 --disk vd1
must qemu-img create -q -f qcow2 "$tmp/b/disk.qcow2" 1M
before=$(all_files)
refused "a target that exists" 'exists already' "$socket" "$tmp/b" --disk vd0
must rm "$tmp/b/disk.qcow2"
must touch "$tmp/a/disk.qcow2.blockmig-source"
before=$(all_files)
refused "what an earlier move left" 'blockmig-source is there already' "$socket" "$tmp/b" --disk vd0
must rm "$tmp/a/disk.qcow2.blockmig-source"
before=$(all_files)

# A job of somebody else.
must qmp g '{"execute": "blockdev-add", "arguments": {"node-name": "copy", "driver": "null-co", "size": 67108864}}' \
    '{"execute": "blockdev-mirror", "arguments": {"job-id": "backup", "device": "disk1", "target": "copy", "sync": "full", "speed": 1}}'
refused "a disk that a job uses" 'job "backup" uses it' "$socket" "$tmp/b" --disk vd1
must qmp g '{"execute": "block-job-cancel", "arguments": {"device": "backup", "force": true}}'

fails_with 8 "no machine behind the socket" blockmig move "qmp:$tmp/nothing" "$tmp/b"
fails_with 2 "not a name of a machine" blockmig move "$tmp/a/disk.qcow2" "$tmp/b"
fails_with 2 "a pause without a unit" blockmig move "$socket" "$tmp/b" --max-pause 500
fails_with 2 "deleting without a proof" blockmig move "$socket" "$tmp/b" --disk vd0 --delete-source --verify=none
fails_with 2 "a method for images" blockmig move "$socket" "$tmp/b" --method=cold
is "$(all_files)" "$before" "nothing was changed by any of them"

run blockmig plan move "$socket" "$tmp/b" --disk vd0
is "$status" 0 "a plan is made"
like "$out" 'method storage' "it names the method"
like "$out" "$tmp/b/disk.qcow2" "and the target"
like "$out" 'at most 500 ms' "and the limit of the pause"
is "$(all_files)" "$before" "and it changes nothing"

must qmp g '{"execute": "stop"}'
refused "a machine that stands still" 'not running' "$socket" "$tmp/b" --disk vd0
must qmp g '{"execute": "cont"}'
is "$(guest_verdict g)" OK "the guest never noticed"
done_testing
