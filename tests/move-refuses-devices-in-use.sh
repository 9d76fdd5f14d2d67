#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A target device that is in use, too small, or the source itself is refused before anything is changed.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_loop
need_free 1G

# all: every file with its inode, and what the devices hold.
all()
{
    (cd "$tmp" && find a s -printf '%p %i\n' | LC_ALL=C sort && sha256sum small.lun held.lun)
}

# refused WHAT PATTERN ARGUMENT...: exit 3 and nothing changed.
refused()
{
    local what=$1 pattern=$2
    shift 2
    run blockmig move "qmp:$tmp/g/qmp" "$@"
    is "$status" 3 "refused: $what"
    like "$err" "$pattern" "and the reason is given"
    is "$(all)" "$before" "and nothing was changed"
}

mkdir "$tmp/a" "$tmp/s"
must truncate -s 64M "$tmp/source.lun"
loop_device "$tmp/source.lun"
source=$REPLY
must qemu-img create -q -f raw "$tmp/a/file.raw" 64M
printf 'label: gpt\n,\n' | sfdisk -q "$tmp/a/file.raw" >/dev/null 2>&1
start_guest g --disk "$source:raw" --disk "$tmp/a/file.raw:raw" --append 'span=8M disks=1 log=1'
guest_wait_ready g

random_file "$tmp/small.lun" 63M 1
loop_device "$tmp/small.lun"
small=$REPLY
random_file "$tmp/held.lun" 80M 2
loop_device "$tmp/held.lun"
held=$REPLY
before=$(all)
refused "no place for the overlay on the target" "$held is a block device.*--scratch" "$held" --disk vd1
refused "a scratch directory that is not there" 'nowhere: there is no such directory' "$held" --disk vd1 \
    --scratch "$tmp/nowhere"
refused "a device that is too small" "$small: too small: 64 MiB.* needed" "$small" --disk vd1 --scratch "$tmp/s"
refused "one that is too small for all that a qcow2 may become" 'too small' "$small" --disk vd1 --scratch "$tmp/s" -O qcow2
refused "the source itself" 'the same device' "$source" --disk vd0 --scratch "$tmp/s"
refused "another disk of the machine" 'lock' "$source" --disk vd1 --scratch "$tmp/s"
refused "one device for two disks" 'not a directory' "$held" --disk vd0 --disk vd1 --scratch "$tmp/s"
running_machine "$held" raw
machine=$REPLY
refused "the disk of another machine" 'lock.*qemu' "$held" --disk vd1 --scratch "$tmp/s"
stop_process "$machine"
must touch "$tmp/s/${source#/dev/}.blockmig-1"
before=$(all)
refused "what an earlier move left" 'blockmig-1 is there already' "$tmp/a/new" --disk vd0 --scratch "$tmp/s"
must rm "$tmp/s/${source#/dev/}.blockmig-1"

must mkfs -q -t ext4 "$held"
mkdir "$tmp/mnt"
must mount "$held" "$tmp/mnt"
at_exit unmount "$tmp/mnt"
before=$(all)
refused "a mounted device" 'in use: mounted' "$held" --disk vd1 --scratch "$tmp/s"
must umount "$tmp/mnt"
before=$(all)
refused "one that holds a file system" "$held holds .*ext4.*--force overwrites it" "$held" --disk vd1 --scratch "$tmp/s"
must blockdev --setro "$held"
before=$(all)
refused "a read-only device" 'read-only' "$held" --disk vd1 --scratch "$tmp/s"
must blockdev --setrw "$held"

must wipefs -q -a "$held"
before=$(all)
run blockmig plan move "qmp:$tmp/g/qmp" "$held" --disk vd0 --scratch "$tmp/s"
is "$status" 0 "a plan is made"
like "$out" "overlays in $tmp/s" "it says where the overlays go"
is "$(all)" "$before" "and it changes nothing"
is "$(guest_verdict g)" OK "the guest never noticed"

# What an earlier run has written there is no reason, although it brought a partition table.
must mkfs -q -t ext4 "$held"
"$blockmig" move "qmp:$tmp/g/qmp" "$held" --disk vd1 --scratch "$tmp/s" --force --bandwidth=8MiB/s -v \
    >/dev/null 2>"$tmp/err" 3>&- </dev/null &
move=$!
at_exit stop_process "$move"
wait_for 30 has_checkpoint "$held" || not_ok "there is a checkpoint"
kill -KILL "$move"
like "$(blkid -p "$held")" gpt "--force overwrites it, with what the disk has"
run blockmig move "qmp:$tmp/g/qmp" "$held" --disk vd1 --scratch "$tmp/s"
# One that had frozen nothing yet has nothing to be rolled back.
[ "$status" -ne 4 ] || run blockmig move "qmp:$tmp/g/qmp" "$held" --disk vd1 --scratch "$tmp/s"
is "$status" 0 "once it is rolled back, the same command begins it anew" || diag "$err"
done_testing
