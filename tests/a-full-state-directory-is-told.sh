#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Without room for the journal nothing is begun; a copy under way stops in order and goes on later.
. "${srcdir:-.}/tests/lib.sh"
need_root
need_tool mount jq cmp

mkdir "$tmp/small"
must mount -t tmpfs -o size=1m,mode=700 none "$tmp/small"
at_exit unmount "$tmp/small"
export BLOCKMIG_STATE_DIR=$tmp/small
random_file "$tmp/source" 64M 9

fill()
{
    dd if=/dev/zero of="$tmp/small/fill" bs=4k status=none 2>/dev/null
    return 0
}

fill
fails_with 3 "a full state directory" "$blockmig" copy --json "$tmp/source" "$tmp/target"
is "$(jq -r .result <<<"$out")" refused "is refused"
check "nothing was begun" test ! -e "$tmp/target.blockmig-part"
rm "$tmp/small/fill"

start "$blockmig" copy -q --bandwidth=10MiB/s "$tmp/source" "$tmp/target"
pid=$REPLY
wait_for 5 test -s "$tmp/target.blockmig-part"
fill
wait "$pid"
is "$?" 5 "one that gets full meanwhile parks the copy"
check "whose target has not its name" test ! -e "$tmp/target"
rm "$tmp/small/fill"
check "with room it is finished" "$blockmig" copy "$tmp/source" "$tmp/target"
check "and right" cmp "$tmp/source" "$tmp/target"

# What proves a copy belongs to it: without a place for that it is not begun, or not done.
export BLOCKMIG_STATE_DIR=$tmp/state
mkdir "$tmp/state"
: >"$tmp/state/receipts"
fails_with 3 "a state directory that cannot have receipts" "$blockmig" copy --json "$tmp/source" "$tmp/second"
like "$err" "$tmp/state/receipts: Not a directory" "is refused"
rm "$tmp/state/receipts"
start "$blockmig" copy -q --bandwidth=30MiB/s "$tmp/source" "$tmp/second" 2>"$tmp/said"
pid=$REPLY
wait_for 5 test -s "$tmp/second.blockmig-part"
must rmdir "$tmp/state/receipts"
: >"$tmp/state/receipts"
wait "$pid"
is "$?" 1 "one that loses their place meanwhile ends the copy"
like "$(cat "$tmp/said")" "creating $tmp/state/receipts: Not a directory" "which is told"
check "its target has not its name" test ! -e "$tmp/second"
rm "$tmp/state/receipts"
mkdir "$tmp/archive"
ln -s "$tmp/archive" "$tmp/state/receipts"
check "with one somewhere else it is finished" "$blockmig" copy "$tmp/source" "$tmp/second"
check "and right" cmp "$tmp/source" "$tmp/second"
is "$(find "$tmp/archive" -name '*.json' | wc -l)" 1 "the receipt is there"
done_testing
