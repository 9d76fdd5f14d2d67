#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# map: the same data and zeros, at the same places, as qemu-img map sees.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq python3
use_seed

# Both as lines "data START END HOST" (of one layer's raw data) and "zero START END", merged as far as possible:
# the programs may cut extents differently.
merged='reduce .[] as $e ([];
    if length > 0 and .[-1].kind == $e.kind and .[-1].end == $e.start and .[-1].depth == $e.depth and
        (.[-1].host == null or .[-1].host + .[-1].end - .[-1].start == $e.host)
    then .[-1].end = $e.end else . + [$e] end) | .[] | "\(.kind) \(.start) \(.end) \(.host) \(.depth)"'

ours()
{
    run blockmig map --json -f "$2" "$1"
    jq -r "[.extents[] | {kind: (if .status == \"packed\" then \"packed\" elif .status == \"data\" then \"data\" else \"zero\" end),
        start: .offset, end: (.offset + .length),
        host: (if .status == \"data\" then .host_offset else null end),
        depth: (if .status == \"data\" then .layer else 0 end)}] | $merged" <<<"$out"
}

theirs()
{
    run qemu-img map --output=json -f "$2" "$1"
    jq -r "[.[] | {kind: (if .zero then \"zero\" elif .offset == null then \"packed\" else \"data\" end),
        start: .start, end: (.start + .length), host: (if .zero then null else .offset end),
        depth: (if .zero or .offset == null then 0 else .depth end)}] | $merged" <<<"$out"
}

# same_map IMAGE FORMAT WHAT
same_map()
{
    local a b
    a=$(ours "$1" "$2")
    b=$(theirs "$1" "$2")
    if [ -n "$a" ] && [ "$a" = "$b" ]; then
        ok "$3"
    else
        not_ok "$3"
        diag "$(diff <(echo "$a") <(echo "$b") | head -20)"
    fi
}

mixed_file "$tmp/mixed" 24M $RANDOM
must truncate -s 24117760 "$tmp/mixed"
same_map "$tmp/mixed" raw "a raw file with holes"
must truncate -s 1G "$tmp/hole"
same_map "$tmp/hole" raw "an empty raw file"

for options in cluster_size=512 cluster_size=64k cluster_size=2M extended_l2=on,cluster_size=128k compat=0.10; do
    make_pattern_image "$tmp/base.qcow2" qcow2 32M 60 -o $options
    same_map "$tmp/base.qcow2" qcow2 "qcow2 with $options"
    make_pattern_image "$tmp/top.qcow2" qcow2 48M 30 -o $options -b base.qcow2 -F qcow2
    same_map "$tmp/top.qcow2" qcow2 "and a longer overlay over it"
done
must qemu-img convert -c -O qcow2 "$tmp/top.qcow2" "$tmp/packed.qcow2"
same_map "$tmp/packed.qcow2" qcow2 "compressed clusters"

# Streaming: a reader that stops early ends the program, it does not fill memory or print half a line.
run bash -c 'set -o pipefail; "$1" map "$2" | head -n 3' - "$builddir/tools/blockmig" "$tmp/mixed"
is "$(wc -l <<<"$out")" 3 "head gets its lines"

# The table and the JSON list are the same.
run blockmig map "$tmp/top.qcow2"
table=$(awk '$3 ~ /^(data|zero|packed|hole)$/ {print $1, $2, $3, $4, $5}' <<<"$out")
run blockmig map --json "$tmp/top.qcow2"
is "$table" "$(jq -r '.extents[] | "\(.offset) \(.length) \(.status) \(.layer) \(.host_offset // "")"' <<<"$out")" \
    "the table shows the same extents"
is "$(jq -r '.schema, .complete, (.extents | map(.length) | add)' <<<"$out" | xargs)" "1 true $((48 << 20))" \
    "they cover the disk"

# A list that an error ends: the second L2 table is nowhere.
must qemu-img create -q -f qcow2 "$tmp/torn.qcow2" 1G
must qemu-io -f qcow2 -c 'write 0 64k' -c 'write 600M 64k' "$tmp/torn.qcow2"
must python3 -c 'import struct, sys
with open(sys.argv[1], "r+b") as image:
    image.seek(40)
    image.seek(struct.unpack(">Q", image.read(8))[0] + 8)
    image.write(struct.pack(">Q", 1 << 63 | 1 << 50))' "$tmp/torn.qcow2"
fails_with 1 "an image with a bad table fails" blockmig map --json "$tmp/torn.qcow2"
is "$(jq -s length <<<"$out")" 1 "there is one object"
is "$(jq .complete <<<"$out")" false "which is not complete"
is "blockmig: $(jq -r .error <<<"$out")" "$err" "and has the error"
done_testing
