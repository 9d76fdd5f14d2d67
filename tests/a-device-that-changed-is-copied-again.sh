#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A device has no time of change: whether a finished copy of it still holds is told by its content.
. "${srcdir:-.}/tests/lib.sh"
need_loop
need_tool cmp jq

random_file "$tmp/one" 8M 3
random_file "$tmp/two" 16M 4
loop_device "$tmp/one"
source=$REPLY
loop_device "$tmp/two"
target=$REPLY

check "a device is copied" "$blockmig" copy "$source" "$tmp/file"
run "$blockmig" copy --json "$source" "$tmp/file"
is "$status" 0 "again: nothing to do"
check "it names the receipt" "$blockmig" verify "$tmp/file" --receipt "$(jq -r .receipt <<<"$out")"
check "to a larger device" "$blockmig" copy "$source" "$target"
is "$(cmp -n $((8 << 20)) "$source" "$target" 2>&1)" "" "it has the content"
is "$(cmp -i $((8 << 20)):0 -n $((8 << 20)) "$target" /dev/zero 2>&1)" "" "zeros follow"
printf x | dd of="$source" bs=1 seek=5000000 conv=notrunc,fsync status=none
fails_with 3 "after a change the old copy is not good enough" "$blockmig" copy "$source" "$tmp/file"
check "--force makes a new one" "$blockmig" copy --force "$source" "$tmp/file"
check "that is right" cmp "$source" "$tmp/file"
check "a device is copied anew at once" "$blockmig" copy "$source" "$target"
is "$(cmp -n $((8 << 20)) "$source" "$target" 2>&1)" "" "and is right"

# A finished copy that somebody changed.
printf x | dd of="$tmp/file" bs=1 seek=3000000 conv=notrunc,fsync status=none
fails_with 6 "a target that was changed since" "$blockmig" copy "$source" "$tmp/file"
like "$err" "differs at byte 2097152" "is named with its place"
like "$err" "--force" "and what to do"
unlike "$err" "to continue" "not to continue"

# What cannot be written is refused before anything is done.
loop_device "$tmp/two" -r
fails_with 3 "a plan for a read-only device" "$blockmig" plan copy "$source" "$REPLY"
fails_with 3 "a copy to it" "$blockmig" copy "$source" "$REPLY"
done_testing
