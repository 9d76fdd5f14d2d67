#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The test guest's verdict is what every test of a live move rests on: it says OK after an honest pivot, and it
# finds every kind of wrong block, by number and sequence.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 512M

# pivot NAME FROM-NODE NODE FILE: the stopped machine goes on with a raw file as its disk.
pivot()
{
    must qmp "$1" \
        "{\"execute\": \"blockdev-add\", \"arguments\": {\"node-name\": \"$3\", \"driver\": \"raw\",
            \"file\": {\"driver\": \"file\", \"filename\": \"$4\", \"cache\": {\"direct\": true}}}}" \
        "{\"execute\": \"blockdev-mirror\", \"arguments\": {\"job-id\": \"pivot\", \"device\": \"$2\",
            \"target\": \"$3\", \"sync\": \"none\"}}" \
        '{"wait": "BLOCK_JOB_READY", "data": {"device": "pivot"}}' \
        '{"execute": "block-job-complete", "arguments": {"device": "pivot"}}' \
        '{"wait": "BLOCK_JOB_COMPLETED", "data": {"device": "pivot"}}' \
        '{"execute": "cont"}'
}

active_node()
{
    qmp "$1" '{"execute": "query-block"}' | jq -r '.[0].inserted["node-name"]'
}

# ---- an honest pivot ----------------------------------------------------------------------------------

must qemu-img create -q -f qcow2 "$tmp/base.qcow2" 64M
start_guest a --libvirt-style --disk "$tmp/base.qcow2:qcow2" --append 'span=8M flush=32 log=1 rate=0'
guest_wait_ready a
sleep 1

# The base is frozen under a new overlay while the guest writes.
must qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -F qcow2 -b "$tmp/base.qcow2" \
    "$tmp/overlay.qcow2"
must qmp a "{\"execute\": \"blockdev-add\", \"arguments\": {\"node-name\": \"overlay\", \"driver\": \"qcow2\",
        \"backing\": null, \"file\": {\"driver\": \"file\", \"filename\": \"$tmp/overlay.qcow2\"}}}" \
    '{"execute": "blockdev-snapshot", "arguments": {"node": "disk0", "overlay": "overlay"}}'
sleep 1
must qmp a '{"execute": "stop"}'
must qemu-img convert -U -O raw "$tmp/overlay.qcow2" "$tmp/target.raw"
pivot a overlay target "$tmp/target.raw"
is "$(active_node a)" target "the disk is on the target"
sleep 1
is "$(guest_verdict a)" OK "after an honest pivot the guest misses nothing"
is "$(host_verdict a 0 "$tmp/target.raw" raw | cut -d' ' -f1)" OK "and the host, from the guest's log, agrees"
is "$(guest_pauses a | wc -l)" 1 "one pause is measured"
is "$(guest_pauses a | awk '{ print ($1 > 0 && $1 < 30000) }')" 1 "and has a length"
writes=$(guest_stats a .writes)
[ "$writes" -gt 500 ] && ok "the guest wrote while it moved" || not_ok "the guest wrote while it moved ($writes)"

# ---- one wrong block of each kind ---------------------------------------------------------------------

# The writers rest, so what is changed in the file is what the guest reads back next.
block=$(grep -abo BMBLOCK1 "$tmp/target.raw" | sed -n '100s/:.*//p')
block=$((block / 4096))
other=$(grep -abo BMBLOCK1 "$tmp/target.raw" | sed -n '200s/:.*//p')
other=$((other / 4096))

# put FILE BLOCK BYTES SKIP-BLOCKS: overwrites the beginning of the block in the target.
put()
{
    must dd "if=$1" "of=$tmp/target.raw" bs=512 conv=notrunc,fsync status=none \
        "seek=$(($2 * 8))" "count=$(($3 / 512))" "skip=$(($4 * 8))"
}

# finds WHAT EXPECTED: guest and host say the same of the one block, and nothing once it is right again.
finds()
{
    local guest host
    guest=$(guest_verdict a)
    host=$(host_verdict a 0 "$tmp/target.raw" raw)
    like "$guest" "^BAD vda block $block: $2, expected sequence [1-9][0-9]*, found [0-9]+; 1 of" "the guest finds $1"
    is "$host" "$guest" "the host finds the same"
    put "$tmp/good.raw" "$block" 4096 "$block"
}

must cp "$tmp/target.raw" "$tmp/good.raw"
put /dev/zero "$block" 4096 0
finds "a lost write" "lost write"
put "$tmp/good.raw" "$block" 4096 "$other"
finds "a block that belongs elsewhere" "foreign data"
put /dev/urandom "$block" 4096 0
finds "a block that is not its own" "foreign data"
must dd if=/dev/zero "of=$tmp/target.raw" bs=512 conv=notrunc,fsync status=none "seek=$((block * 8 + 5))" count=1
finds "a torn block" "torn block"
is "$(guest_verdict a)" OK "with the blocks back in place all is well"

# ---- a pivot that comes too early ---------------------------------------------------------------------

# good.raw is the disk as it is now; the guest goes on for a moment, and is then given good.raw.
must guest_cmd a 'rate 100'
must guest_cmd a start
sleep 0.5
must guest_cmd a stop
must qmp a '{"execute": "stop"}'
pivot a target late "$tmp/good.raw"
verdict=$(guest_verdict a)
like "$verdict" '^BAD vda block [0-9]+: (older data|lost write), expected sequence [1-9][0-9]*, found [0-9]+; [1-9]' \
    "the guest misses what it wrote after the copy"
is "$(host_verdict a 0 "$tmp/good.raw" raw)" "$verdict" "the host misses the same"
stop_guest a

# ---- a crash ------------------------------------------------------------------------------------------

must qemu-img create -q -f qcow2 "$tmp/c0.qcow2" 64M
must qemu-img create -q -f raw "$tmp/c1.raw" 64M
start_guest b --drive-style --disk "$tmp/c0.qcow2:qcow2" --disk "$tmp/c1.raw:raw" \
    --append 'span=8M flush=16 log=1 sequential'
guest_wait_ready b
sleep 2
like "$(guest_stats b '.disks | length')" '^2$' "the old way of naming disks works, with two disks"
kill_guest b
like "$(host_verdict b 0 "$tmp/c0.qcow2" qcow2)" '^OK [1-9]' "after a crash every flushed write is in the qcow2 disk"
like "$(host_verdict b 1 "$tmp/c1.raw" raw)" '^OK [1-9]' "and in the raw disk"
must qemu-io -f qcow2 -c 'write -z 12288 4096' "$tmp/c0.qcow2"
like "$(host_verdict b 0 "$tmp/c0.qcow2" qcow2)" '^BAD vda block 3: lost write, expected sequence [1-9]' \
    "one that is not there is found"
done_testing
