#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What an older copy on the target's side has is not sent; and whatever is the matter with that copy, the target is
# right.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
use_seed

local_agent
size=$((24 << 20))
random_file "$tmp/disk.raw" $size 11
must cp "$tmp/disk.raw" "$tmp/old.raw"
# 5 % of it in pieces of 64 KiB, all over the disk
for ((i = 0; i < 19; i++)); do
    below $((size >> 16))
    must dd if=/dev/urandom of="$tmp/disk.raw" bs=64K count=1 seek=$REPLY conv=notrunc status=none
done

# seeded NAME SEED OPTIONS...: wire is what went over the link.
seeded()
{
    local name=$1 seed=$2
    shift 2
    rm -f "$tmp/store/$name"
    run_ok "$name: copied" blockmig copy --json --compress=off --seed "$seed" "$@" "$tmp/disk.raw" "$store/$name"
    wire=$(jq '.disks[0].bytes_wire' <<<"$out") spared=$(jq '.disks[0].bytes_seeded' <<<"$out")
    is "$(jq -r '.disks[0].verified' <<<"$out")" full "$name: proved"
    check "$name: right" qemu-img compare -q -f raw "$tmp/disk.raw" "$tmp/store/$name"
}

must cp "$tmp/disk.raw" "$tmp/store/equal.raw"
seeded a.raw equal.raw
check "of one that is equal nothing is sent ($wire bytes)" test "$wire" -lt $((size / 50))

for format in raw qcow2 vhdx vpc; do
    must qemu-img convert -f raw -O $format "$tmp/old.raw" "$tmp/store/old.$format"
    seeded b.raw "$store/old.$format" -O raw
    check "of one that is older, as $format, a twentieth is sent ($wire bytes)" test "$wire" -lt $((size / 12))
    check "and no less than that" test "$wire" -gt $((size / 40))
done
seeded c.qcow2 old.vhdx -O qcow2
check "the format of the target is another matter ($wire bytes)" test "$wire" -lt $((size / 12))
must qemu-img create -q -f qcow2 -b old.qcow2 -F qcow2 "$tmp/store/child.qcow2"
must qemu-io -f qcow2 -c "write -P 7 1M 1M" "$tmp/store/child.qcow2"
seeded d.raw child.qcow2
must qemu-img convert -c -f raw -O qcow2 "$tmp/old.raw" "$tmp/store/packed.qcow2"
seeded e.raw packed.qcow2

head -c $((size / 2 + 12345)) "$tmp/old.raw" >"$tmp/store/smaller.raw"
seeded f.raw smaller.raw
check "one that is smaller helps as far as it goes ($wire bytes)" test "$wire" -lt $((size * 2 / 3))
cat "$tmp/old.raw" "$tmp/old.raw" >"$tmp/store/larger.raw"
seeded g.raw larger.raw
check "one that is larger helps, too ($wire bytes)" test "$wire" -lt $((size / 12))
random_file "$tmp/store/other.raw" $size 12
seeded h.raw other.raw
check "one of another disk costs little ($wire bytes)" test "$wire" -lt $((size * 21 / 20))

# ---- content that shifts ------------------------------------------------------------------------------

must mv "$tmp/disk.raw" "$tmp/disk.kept"
must cp "$tmp/old.raw" "$tmp/store/was.raw"
{
    head -c 5001 /dev/urandom
    head -c 9000000 "$tmp/old.raw"
    head -c 777 /dev/urandom
    tail -c +9100001 "$tmp/old.raw"
} >"$tmp/disk.raw"
seeded shifted.raw was.raw
check "what has moved in a file is not sent ($wire bytes)" test "$wire" -lt $((size / 10))
check "nor is it counted as sent" test "$spared" -gt $((size * 9 / 10))
# The second half before the first.
{ tail -c +12582913 "$tmp/old.raw"; head -c 12582912 "$tmp/old.raw"; echo; } >"$tmp/disk.raw"
seeded turned.raw was.raw
check "in whatever order ($wire bytes)" test "$wire" -lt $((size / 10))
head -c 3000 "$tmp/old.raw" >"$tmp/disk.raw"
seeded tiny.raw was.raw
: >"$tmp/store/nothing.raw"
must cp "$tmp/old.raw" "$tmp/disk.raw"
seeded whole.raw nothing.raw
must mv "$tmp/disk.kept" "$tmp/disk.raw"

# ---- seeds that change, and that lie ----------------------------------------------------------------

must cp "$tmp/disk.raw" "$tmp/store/busy.raw"
while :; do
    for ((i = 0; i < size >> 20; i++)); do
        dd if=/dev/urandom of="$tmp/store/busy.raw" bs=64K count=1 seek=$((RANDOM % (size >> 16))) conv=notrunc status=none
    done
done 3>&- &
writer=$!
at_exit kill $writer
for i in 1 2; do
    seeded "i$i.raw" busy.raw
done
kill $writer
must cp "$tmp/store/old.qcow2" "$tmp/store/broken.qcow2"
# tables of level 2 that lead anywhere
must dd if=/dev/urandom of="$tmp/store/broken.qcow2" bs=64K seek=4 count=2 conv=notrunc status=none
seeded j.raw broken.qcow2

# ---- an agent that is started anew ------------------------------------------------------------------

rm -f "$tmp/store/k.raw"
"$builddir/tools/blockmig" copy --json --compress=off --bandwidth=10MiB/s --seed equal.raw "$tmp/disk.raw" "$store/k.raw" 3>&- \
    </dev/null >"$tmp/k.json" &
pid=$!
wait_for 20 test -s "$tmp/store/k.raw.blockmig-part"
sleep 0.5
kill -KILL "$agent"
wait "$agent" 2>/dev/null
local_agent
wait $pid
is $? 0 "an agent that is started anew opens the seed again"
check "right" cmp "$tmp/disk.raw" "$tmp/store/k.raw"
wire=$(jq '.disks[0].bytes_wire' "$tmp/k.json")
check "little is sent ($wire bytes)" test "$wire" -lt $((size / 20))

# ---- what is refused --------------------------------------------------------------------------------

fails_with 3 "a seed that is not there" blockmig copy -q --seed none.raw "$tmp/disk.raw" "$store/no.raw"
like "$err" "seed.*none.raw" "is named"
fails_with 2 "a seed outside of the datastore" blockmig copy -q --seed ../disk.raw "$tmp/disk.raw" "$store/no.raw"
fails_with 3 "a seed on another host" blockmig copy -q --seed blockmig://other.example/store/x "$tmp/disk.raw" "$store/no.raw"
like "$err" "not on the target's host" "is of no use"
fails_with 2 "a seed on a server" blockmig copy -q --seed nbd://localhost/x "$tmp/disk.raw" "$store/no.raw"
fails_with 2 "a target without an agent" blockmig copy -q --seed "$tmp/old.raw" "$tmp/disk.raw" "$tmp/no.raw"
check "nothing was begun" test ! -e "$tmp/store/no.raw.blockmig-part"
run_ok "a plan" blockmig plan copy --seed old.qcow2 "$tmp/disk.raw" "$store/no.raw"
like "$out" "old.qcow2 has at the same place" "tells of it"
done_testing
