#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Free bytes, inodes and the largest file of small ext4, XFS and Btrfs file systems, and of devices.
. "${srcdir:-.}/tests/lib.sh"
need_loop
need_tool mkfs.ext4 mkfs.xfs mkfs.btrfs setpriv

query=$builddir/tests/helpers/space-query
MiB=1048576

# nobody COMMAND...: as a user without privileges.
nobody()
{
    setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
}

# room_matches DIR WHAT: what is reported as free can be allocated, and what is not cannot.
room_matches()
{
    local dir=$1 what=$2 available
    must "$query" room "$dir" 1 1
    available=${out%% *}
    is "$available" "$(stat -f -c '%a %S' "$dir" | { read -r a b; echo $((a * b)); })" "$what: as statfs says"
    fails_with 3 "$what: one byte more is refused" "$query" room "$dir" $((available + 1)) 1
    like "$err" "no room: .*\($((available + 1)) bytes\) needed, the file system allows .*\($available bytes\)" \
        "$what: the message states needed and available"
    run_ok "$what: exactly that is granted" "$query" room "$dir" "$available" 1
}

small_filesystem ext4 64M -N 64
ext4=$REPLY
room_matches "$ext4" ext4
for i in $(seq 100); do
    { : >"$ext4/file$i"; } 2>/dev/null || break
done
fails_with 3 "ext4: without inodes" "$query" room "$ext4" 1 1
like "$err" '1 inode needed, 0 available' "ext4: the message says inodes"
rm -f "$ext4"/file*
must chmod 755 "$tmp" "$(dirname "$ext4")"
must chmod 1777 "$ext4"
must mkdir "$ext4/locked"

# ext4 keeps blocks for root: they are nobody's to plan with.
run_ok "ext4: a user may ask" nobody "$query" room "$ext4" $MiB 1
run_ok "ext4: a user may create in a directory for all" nobody "$query" file "$ext4" $MiB
fails_with 3 "ext4: a user may not create in a directory of root" nobody "$query" file "$ext4/locked" 1
like "$err" 'no file can be created here: Permission denied' "ext4: the message says so"

largest=$(((4294967295) * $(stat -f -c %S "$ext4")))
run_ok "ext4: a file of the largest size" "$query" file "$ext4" $largest
fails_with 3 "ext4: a larger one is refused" "$query" file "$ext4" $((largest + 1))
like "$err" "too large for this file system: at most .*\($largest bytes\)" "ext4: the limit is found"
is "$(find "$ext4" -type f | wc -l)" 0 "ext4: nothing is left behind"

# Half full is half full.
before=$("$query" room "$ext4" 1 1 | cut -d' ' -f1)
must fallocate -l $((16 * MiB)) "$ext4/half"
after=$("$query" room "$ext4" 1 1 | cut -d' ' -f1)
is $(((before - after) / MiB)) 16 "ext4: 16 MiB that were taken are missing"
must mount -o remount,ro "$ext4"
fails_with 3 "ext4: read-only" "$query" file "$ext4" 1
like "$err" 'Read-only file system' "ext4: the message says read-only"

small_filesystem xfs 320M
room_matches "$REPLY" XFS
run_ok "XFS: a file of 8 EiB less one page" "$query" file "$REPLY" 9223372036854771712

small_filesystem btrfs 128M
must "$query" room "$REPLY" 1 1000000000
is "$(cut -d' ' -f2 <<<"$out")" 18446744073709551615 "Btrfs: inodes are not counted"

must truncate -s 8M "$tmp/device"
loop_device "$tmp/device"
device=$REPLY
must "$query" room "$device" $((8 * MiB)) 1
is "$out" "$((8 * MiB)) 18446744073709551615 $((8 * MiB)) device" "a device has its size"
fails_with 3 "a device that is a byte too small" "$query" room "$device" $((8 * MiB + 1)) 0
like "$err" 'too small: 8 MiB \(8388609 bytes\) needed, the device has 8 MiB \(8388608 bytes\)' \
    "the message has exact bytes"
run_ok "a device has no largest file" "$query" file "$device" $((8 * MiB))
done_testing
