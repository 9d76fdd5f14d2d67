#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --delete-source: a source that could not be deleted is not called deleted because its datastore is not mounted.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq mount
need_root

mkdir "$tmp/store" "$tmp/mounted" "$tmp/out"
must qemu-img create -q -f qcow2 "$tmp/store/disk" 8M
must qemu-io -f qcow2 -c "write -P 3 1M 5M" "$tmp/store/disk"
mount_store()
{
    must mount --bind "$tmp/store" "$tmp/mounted"
    must mount -o "remount,$1,bind" "$tmp/mounted"
}

mount_store ro
at_exit "unmount '$tmp/mounted'"
fails_with 1 "a source on a read-only file system is not deleted" \
    "$blockmig" copy -q --delete-source "$tmp/mounted/disk" "$tmp/out/"
unmount "$tmp/mounted"
fails_with 3 "that it is not there does not mean that it is deleted" "$blockmig" job resume
like "$err" "$tmp/mounted/disk.* $tmp/mounted is not the directory" "which is said"
unlike "$out" "deleted" "and nothing else"
mv "$tmp/mounted" "$tmp/away"
fails_with 3 "nor if the directory is not there" "$blockmig" \
    copy -q --delete-source "$tmp/mounted/disk" "$tmp/out/"
like "$err" "$tmp/mounted/disk.* $tmp/mounted is not the directory" "which is said"
mv "$tmp/away" "$tmp/mounted"
is "$(ls "$tmp/store")" disk "the source is there"
mount_store rw
run_ok "once it is mounted the job is finished" "$blockmig" job resume --json
is "$(jq -r .source <<<"$out")" deleted "and says that the source is deleted"
is "$(ls "$tmp/store")" "" "which it is"
unmount "$tmp/mounted"

# Deleted by somebody, from the directory that it was in.
must cp "$tmp/out/disk" "$tmp/store/other"
mount_store ro
fails_with 1 "another source is not deleted" \
    "$blockmig" copy -q --delete-source "$tmp/mounted/other" "$tmp/out/"
rm "$tmp/store/other"
run_ok "one that was deleted meanwhile is deleted" "$blockmig" job resume
unmount "$tmp/mounted"
done_testing
