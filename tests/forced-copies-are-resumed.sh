#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --force belongs to the job: one that was stopped goes on, a finished one is copied anew; what the earlier
# runs did is counted.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq python3 cmp

random_file "$tmp/source" 96M 5
random_file "$tmp/old" 8M 6

# start_and_kill TARGET [options]: killed after the first checkpoint, which comes after five seconds.
start_and_kill()
{
    local pid
    start "$blockmig" copy -q --bandwidth=8MiB/s "${@:2}" "$tmp/source" "$1"
    pid=$REPLY
    wait_for 30 has_checkpoint "$1"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
}

cp "$tmp/old" "$tmp/a"
cp "$tmp/old" "$tmp/b"
start_and_kill "$tmp/a" --force &
start_and_kill "$tmp/b" --force &
wait
same_content "$tmp/old" "$tmp/a" "the old file stands while the copy grows" -f raw -F raw
run "$blockmig" copy --json --force "$tmp/source" "$tmp/a"
is "$status $(jq -c '[.resumed, .result]' <<<"$out")" '0 [true,"done"]' "the same command goes on"
is "$(jq -c '.disks[0] | [.bytes_read >= (96 * 1048576), .bytes_written, .bytes_verified]' <<<"$out")" \
    "[true,$((96 << 20)),$((96 << 20))]" "the counts are those of all runs"
receipt=$(jq -r .receipt <<<"$out")
is "$(jq -c '.counters | [.total, .data_total, .data_done, .bytes_verified]' "$receipt")" \
    "[$((96 << 20)),$((96 << 20)),$((96 << 20)),$((96 << 20))]" "in the receipt as well"
check "the copy is right" cmp "$tmp/source" "$tmp/a"

id=$("$blockmig" job list --json 2>/dev/null 3>&- | jq -r ".jobs[] | select(.target == \"$tmp/b\") | .job")
check "job resume goes on, too" "$blockmig" job resume "$id"
like "$out" "time .*/s read, continued from an earlier run" "and tells the rate of this run"
check "that copy is right" cmp "$tmp/source" "$tmp/b"
fails_with 3 "it cannot be resumed once it is done" "$blockmig" job resume "$id"

first=$(jq -r .job "$receipt")
run "$blockmig" copy --json --force "$tmp/source" "$tmp/a"
is "$status" 0 "a finished one is copied anew"
isnt=$(jq -r .job <<<"$out")
like "$isnt" "^[0-9]{8}-" "by a job"
unlike "$isnt" "^$first\$" "of its own"

# A job that another replaced is no longer there to be resumed.
cp "$tmp/old" "$tmp/c"
start_and_kill "$tmp/c" --force
fails_with 3 "other options are refused" "$blockmig" copy --force -O qcow2 "$tmp/source" "$tmp/c"
check "--restart begins anew" "$blockmig" copy --force --restart -O qcow2 "$tmp/source" "$tmp/c"
is "$("$blockmig" job list --json 2>/dev/null 3>&- |
    jq -c "[.jobs[] | select(.target == \"$tmp/c\") | .state]")" '["done","discarded"]' "the other is given up"
fails_with 2 "there is nothing left to resume" "$blockmig" job resume
is "$(echo "$tmp"/*.blockmig-part)" "$tmp/*.blockmig-part" "no part is left"
done_testing
