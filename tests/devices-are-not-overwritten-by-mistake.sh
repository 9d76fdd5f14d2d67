#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What lies on a device, or is used, is not overwritten unless --force says so; and a disk goes only where its
# partition table fits the device's sectors.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_loop
need_tool mkfs.ext4 sfdisk mkswap qemu-img
random_file "$tmp/source.raw" 24M 1

# fresh_device [losetup options]: sets REPLY to an empty device of 64 MiB.
number=0
fresh_device()
{
    number=$((number + 1))
    truncate -s 64M "$tmp/device$number"
    loop_device "$tmp/device$number" "$@"
}

# refused TEXT DEVICE WHAT: and nothing is changed; --force goes on.
refused()
{
    local before
    before=$(sha256sum <"$2")
    fails_with 3 "a device with $3 is refused" blockmig copy -f raw "$tmp/source.raw" "$2"
    like "$err" "holds $1.*--force overwrites it" "  with the reason"
    is "$(sha256sum <"$2")" "$before" "  and not changed"
}

fresh_device
run_ok "an empty device is written" blockmig copy -f raw "$tmp/source.raw" "$REPLY"
fresh_device
must mkfs.ext4 -q -L data "$REPLY"
refused 'a file system \(ext4 "data"\)' "$REPLY" "a file system"
run_ok "--force overwrites it" blockmig copy --force -f raw "$tmp/source.raw" "$REPLY"
check "  with the source" cmp -n $((24 << 20)) "$tmp/source.raw" "$REPLY"
fresh_device
printf 'label: gpt\n,\n' | sfdisk -q "$REPLY" >/dev/null 2>&1
refused 'a partition table \(gpt\)' "$REPLY" "a partition table"
fresh_device
must mkswap -q "$REPLY"
refused 'data of another kind \(swap\)' "$REPLY" "swap space"
fresh_device --sector-size 4096
must mkfs.ext4 -q "$REPLY"
refused 'a file system \(ext4\)' "$REPLY" "sectors of 4096 bytes and a file system"
truncate -s 32M "$tmp/small"
loop_device "$tmp/small"
must mkfs.ext4 -q "$REPLY"
fails_with 3 "also as a qcow2 image" blockmig copy -f raw -O qcow2 "$tmp/source.raw" "$REPLY"

# An earlier run's own data is no reason: the source brings a partition table along.
cp "$tmp/source.raw" "$tmp/table.raw"
printf 'label: gpt\n,\n' | sfdisk -q "$tmp/table.raw" >/dev/null 2>&1
fresh_device
device=$REPLY
"$blockmig" copy --bandwidth=4MiB/s -f raw "$tmp/table.raw" "$device" >/dev/null 2>&1 3>&- </dev/null &
copy=$!
at_exit stop_process "$copy"
wait_for 30 has_checkpoint "$device" || not_ok "there is a checkpoint"
kill -KILL "$copy"
wait "$copy" 2>/dev/null
run_ok "an interrupted copy goes on over its own partition table" blockmig copy -f raw "$tmp/table.raw" "$device"

# In use.
fresh_device
must mkfs.ext4 -q "$REPLY"
mkdir "$tmp/mnt"
must mount "$REPLY" "$tmp/mnt"
at_exit unmount "$tmp/mnt"
fails_with 3 "a mounted device is refused, even with --force" blockmig copy --force -f raw "$tmp/source.raw" "$REPLY"
like "$err" "in use: mounted at $tmp/mnt" "  and where it is mounted is said"

# Sectors.
fresh_device --sector-size 4096
big=$REPLY
fails_with 3 "a table of 512-byte sectors is not put on a device with others" blockmig copy -f raw "$tmp/table.raw" "$big"
like "$err" 'sectors of 4096 bytes, but the partition table .* counts in sectors of 512' "  with the reason"
run_ok "a disk without a table goes there" blockmig copy -f raw "$tmp/source.raw" "$big"
run_ok "and one with a table, inside an image" blockmig copy --force -f raw -O qcow2 "$tmp/table.raw" "$big"
printf 'label: dos\n,\n' | sfdisk -q "$tmp/source.raw" >/dev/null 2>&1
fresh_device --sector-size 4096
fails_with 3 "an MBR counts, too" blockmig copy -f raw "$tmp/source.raw" "$REPLY"
run_ok "--force writes it" blockmig copy --force -f raw "$tmp/source.raw" "$REPLY"
fresh_device --sector-size 4096
printf 'label: gpt\n,\n' | sfdisk -q "$REPLY" >/dev/null 2>&1
run_ok "from such a device" blockmig copy -f raw -O raw "$REPLY" "$tmp/4k.raw"
fresh_device
fails_with 3 "nor the other way round" blockmig copy -f raw "$tmp/4k.raw" "$REPLY"
like "$err" 'sectors of 512 bytes, but .* of 4096' "  with the reason"

# Nor is the name of one deleted.
fresh_device
device=$REPLY
fails_with 3 "a device is not deleted" blockmig copy -f raw --delete-source "$device" "$tmp/kept.raw"
like "$err" "$device is a block device: --delete-source cannot delete it" "  and that is said before anything is copied"
must qemu-img create -q -f raw "$tmp/below.raw" 1M
must qemu-img create -q -f qcow2 -b "$tmp/below.raw" -F raw "$device"
fails_with 3 "nor after a commit" blockmig commit --allow-root "$tmp" --delete-source "$device"
check "it is there" test -b "$device" -a ! -e "$tmp/kept.raw"

# The same for what a URI names.
start_tgtd
make_target
truncate -s 64M "$tmp/unit"
must mkfs.ext4 -q -F "$tmp/unit"
add_lun 1 "$tmp/unit"
fails_with 3 "a unit with a file system is refused" blockmig copy -f raw "$tmp/4k.raw" "$REPLY"
truncate -s 64M "$tmp/unit2"
add_lun 2 "$tmp/unit2" --blocksize 4096
fails_with 3 "as is one with other sectors" blockmig copy -f raw "$tmp/table.raw" "$REPLY"
run_ok "those of its own kind fit" blockmig copy -f raw "$tmp/4k.raw" "$REPLY"
done_testing
