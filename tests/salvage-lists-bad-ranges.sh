#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Unreadable ranges of the source: the copy stops and names them; with --salvage it goes on and lists them.
. "${srcdir:-.}/tests/lib.sh"
need_fuse
need_tool jq python3 cmp

random_file "$tmp/medium" 8M 11
# Two bad places: one sector, and 20 KiB across a 1 MiB boundary.
bad1=$((1234 * 512)) bad1_end=$((1235 * 512))
bad2=$((3 * 1048576 - 8192)) bad2_end=$((3 * 1048576 + 12288))
export MEDIUM="$tmp/medium" BAD1=$bad1 BAD1_END=$bad1_end BAD2=$bad2 BAD2_END=$bad2_end
fuse_file -r --filter=blocksize-policy eval blocksize-minimum=512 blocksize-preferred=4096 blocksize-error-policy=error \
    get_size='stat -Lc %s "$MEDIUM"' \
    pread='end=$(($4 + $3))
        if [ $4 -lt $BAD1_END ] && [ $end -gt $BAD1 ]; then echo EIO bad sector >&2; exit 1; fi
        if [ $4 -lt $BAD2_END ] && [ $end -gt $BAD2 ]; then echo EIO bad sectors >&2; exit 1; fi
        dd if="$MEDIUM" skip=$4 count=$3 iflag=count_bytes,skip_bytes,fullblock bs=65536 status=none'
source=$REPLY

fails_with 1 "a read error ends the copy" blockmig copy -f raw -O raw "$source" "$tmp/target"
like "$err" "[0-9]{6}" "the message has the place"

rm -f "$tmp/target"
fails_with 6 "--salvage goes on and exits 6" blockmig copy --restart --json --salvage -f raw -O raw "$source" "$tmp/target"
ranges=$(jq -c '[.disks[0].bad_ranges[] | [.offset, .offset + .length]]' <<<"$out")
diag "listed: $ranges"

# Every bad byte is listed, and what is listed stays close to the bad bytes.
verdict=$(python3 - "$ranges" $bad1 $bad1_end $bad2 $bad2_end <<'PYTHON'
import json, sys
ranges = json.loads(sys.argv[1])
a, a_end, b, b_end = map(int, sys.argv[2:])
for start, end in ((a, a_end), (b, b_end)):
    if not any(low <= start and end <= high for low, high in ranges):
        print(f"{start}..{end} is not listed")
for low, high in ranges:
    if not any(start - 4096 <= low and high <= end + 4096 for start, end in ((a, a_end), (b, b_end))):
        print(f"{low}..{high} is more than what is bad")
PYTHON
)
is "$verdict" "" "the list is complete and not larger than the pages around"

# Outside of the list every byte is there; inside are zeros.
verdict=$(python3 - "$ranges" "$tmp/medium" "$tmp/target" <<'PYTHON'
import json, sys
good = bytearray(open(sys.argv[2], "rb").read())
for low, high in json.loads(sys.argv[1]):
    good[low:high] = bytes(high - low)
copy = open(sys.argv[3], "rb").read()
if copy != bytes(good):
    first = next(i for i in range(min(len(copy), len(good))) if copy[i] != good[i]) if len(copy) == len(good) else -1
    print(f"sizes {len(copy)} {len(good)}, first difference at {first}")
PYTHON
)
is "$verdict" "" "all other bytes were copied, the listed ones are zeros"

# It stays what it is when it is run again.
fails_with 6 "the same command exits 6 again" blockmig copy --json --salvage -f raw -O raw "$source" "$tmp/target"
is "$(jq -c '[.disks[0].bad_ranges[] | [.offset, .offset + .length]]' <<<"$out")" "$ranges" "with the same list"
like "$(jq -r .advice <<<"$out")" "--force" "the advice is to copy it again"
fails_with 3 "there is nothing to resume" blockmig job resume "$(jq -r .job <<<"$out")"

# What was salvaged before a kill is not forgotten: checkpoints come after five seconds.
start "$blockmig" copy -q --salvage --bandwidth=700KiB/s -f raw -O raw "$source" "$tmp/slow"
pid=$REPLY
wait_for 30 has_checkpoint "$tmp/slow"
kill -KILL "$pid"
wait "$pid"
fails_with 6 "a salvage that was killed" blockmig copy --json --salvage -f raw -O raw "$source" "$tmp/slow"
is "$(jq -r .resumed <<<"$out")" true "goes on"
is "$(jq -c '[.disks[0].bad_ranges[] | [.offset, .offset + .length]]' <<<"$out")" "$ranges" "with the whole list"
check "and the receipt holds it" jq -e '.bad | length == 2' "$(jq -r .receipt <<<"$out")"
done_testing
