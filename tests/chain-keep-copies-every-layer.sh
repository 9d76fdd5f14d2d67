#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --chain=keep: the same layers under the same names, with backing names that need only each other.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq
use_seed

mkdir "$tmp/from" "$tmp/to" "$tmp/from/sub"
make_pattern_image "$tmp/from/base.raw" raw 16M 40
make_pattern_image "$tmp/from/middle.qcow2" qcow2 16M 20 -b base.raw -F raw
make_pattern_image "$tmp/from/sub/lower.qcow2" qcow2 20M 20 -b ../middle.qcow2 -F qcow2 -o extended_l2=on,cluster_size=128k
make_pattern_image "$tmp/from/top.qcow2" qcow2 20M 20 -b "$tmp/from/sub/lower.qcow2" -F qcow2
sums=$(cd "$tmp/from" && find . -type f -exec sha256sum {} + | sort)

# Which layer every byte comes from.
depths()
{
    qemu-img map --output=json "$1" | jq -c 'reduce .[] as $e ([];
        if length > 0 and .[-1].depth == $e.depth and .[-1].present == $e.present
        then .[-1].end = $e.start + $e.length
        else . + [{start: $e.start, end: ($e.start + $e.length), depth: $e.depth, present: $e.present}] end)'
}
expected=$(depths "$tmp/from/top.qcow2")
hash=$(content_hash "$tmp/from/top.qcow2" qcow2)
middle=$(content_hash "$tmp/from/middle.qcow2" qcow2)

run_ok "the chain is copied" blockmig copy --json --chain=keep "$tmp/from/top.qcow2" "$tmp/to"
is "$(jq '.disks | length' <<<"$out")" 4 "the report has one entry for each layer"
is "$(cd "$tmp/from" && find . -type f -exec sha256sum {} + | sort)" "$sums" "the source is as it was"

# Nothing may lead back to where it came from.
mv "$tmp/from" "$tmp/gone"
is "$(content_hash "$tmp/to/top.qcow2" qcow2)" "$hash" "the copy stands without the source and is the same disk"
is "$(find "$tmp/to" -type f | wc -l)" 4 "there are four files"
is "$(depths "$tmp/to/top.qcow2")" "$expected" "every byte comes from the same layer as before"
copied_middle=$(find "$tmp/to" -name middle.qcow2)
is "$(content_hash "$copied_middle" qcow2)" "$middle" "a layer below is the same disk, too"
while read -r image; do
    case $image in
        *.raw) ;;
        *)
            image_clean "$image" "$(basename "$image") is clean"
            backing=$(qemu-img info --output=json "$image" | jq -r '."backing-filename"')
            unlike "$backing" '^/' "$(basename "$image") names its backing file relatively: $backing"
            ;;
    esac
done < <(find "$tmp/to" -type f | sort)
mv "$tmp/to" "$tmp/moved"
is "$(content_hash "$tmp/moved/top.qcow2" qcow2)" "$hash" "the copied chain can be moved as a whole"

# Killed while the base is copied, the top not yet begun: the base is not copied again.
random_file "$tmp/large" 60M 4
must qemu-img convert -O qcow2 "$tmp/large" "$tmp/large.qcow2"
must qemu-img create -q -f qcow2 -b "$tmp/large.qcow2" -F qcow2 "$tmp/over.qcow2"
must qemu-io -f qcow2 -c "write -P 7 1M 1M" "$tmp/over.qcow2"
mkdir "$tmp/killed"
start "$blockmig" copy -q --chain=keep --bandwidth=8MiB/s "$tmp/over.qcow2" "$tmp/killed"
pid=$REPLY
wait_for 30 has_checkpoint "$tmp/killed/over.qcow2"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
check "the top is not there yet" test ! -e "$tmp/killed/over.qcow2.blockmig-part"
run "$blockmig" copy --json --chain=keep "$tmp/over.qcow2" "$tmp/killed"
is "$status $(jq .resumed <<<"$out")" "0 true" "the base goes on where it was stopped"
same_content "$tmp/over.qcow2" "$tmp/killed/over.qcow2" "the chain is right"
done_testing
