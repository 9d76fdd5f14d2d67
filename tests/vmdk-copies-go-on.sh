#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A copy into a VMDK, of one file or several, that was stopped by a full file system or by SIGKILL goes on after its last
# checkpoint; one that is given up leaves none of its files.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq
need_loop
need_free 2G
random_file "$tmp/source.raw" 300M 3

use_seed
some 2 streamOptimized twoGbMaxExtentSparse monolithicSparse twoGbMaxExtentFlat
for subformat in "${chosen[@]}"; do
    small_filesystem ext4 400M
    there=$REPLY
    copy=(-O vmdk -o "subformat=$subformat" "$tmp/source.raw" "$there/disk.vmdk")
    "$blockmig" copy -q --bandwidth=30MiB/s "${copy[@]}" 3>&- &
    pid=$!
    # Where even the tables find no room any more there is nothing to go on from but what was saved before.
    wait_for 60 has_checkpoint "$there/disk.vmdk"
    fallocate -l 200M "$there/ballast"
    wait "$pid"
    is "$?" 5 "$subformat: a full file system parks the copy"
    check "nothing has its name yet" test "$(compgen -G "$there/disk*.vmdk" | wc -l)" -eq 0
    rm "$there/ballast"
    run_ok "$subformat: the same command again" blockmig copy --json "${copy[@]}"
    is "$(jq -r '"\(.result) \(.resumed)"' <<<"$out")" "done true" "goes on"
    same_content "$tmp/source.raw" "$there/disk.vmdk" "and the copy is right" -f raw -F vmdk
    is "$(compgen -G "$there/*part")" "" "no part is left"
done

for subformat in streamOptimized twoGbMaxExtentSparse; do
    mkdir "$tmp/$subformat"
    copy=(-O vmdk -o "subformat=$subformat" "$tmp/source.raw" "$tmp/$subformat/disk.vmdk")
    "$blockmig" copy -q --bandwidth=40MiB/s "${copy[@]}" 3>&- &
    pid=$!
    check "$subformat: there is a checkpoint" wait_for 60 has_checkpoint "$tmp/$subformat/disk.vmdk"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    run_ok "$subformat: after SIGKILL" blockmig copy --json "${copy[@]}"
    is "$(jq -r '"\(.result) \(.resumed)"' <<<"$out")" "done true" "it goes on"
    same_content "$tmp/source.raw" "$tmp/$subformat/disk.vmdk" "and the copy is right" -f raw -F vmdk
done

mkdir "$tmp/given-up"
"$blockmig" copy -q --bandwidth=20MiB/s -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/source.raw" "$tmp/given-up/disk.vmdk" 3>&- &
pid=$!
wait_for 60 has_checkpoint "$tmp/given-up/disk.vmdk"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
is "$(ls "$tmp/given-up" | xargs)" "disk-s001.vmdk.blockmig-part disk.vmdk.blockmig-part" "a killed copy leaves its parts"
run_ok "it is given up" blockmig job cancel "$("$blockmig" job list --json | jq -r --arg target "$tmp/given-up/disk.vmdk" \
    'first(.jobs[] | select(.target == $target)).job')"
is "$(ls "$tmp/given-up")" "" "and nothing is left"
done_testing
