#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# map --bitmap: the dirty ranges that QEMU itself sees in a bitmap of an NBD server.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
need_tool jq python3 qemu-io

# ours NAME: "OFFSET LENGTH" of each dirty range.
ours()
{
    run blockmig map --json --bitmap="$1" "$uri"
    jq -r '.extents[] | select(.status == "dirty") | "\(.offset) \(.length)"' <<<"$out"
}

# merged: "BEGIN END" lines to "OFFSET LENGTH", ranges that touch as one. mawk prints large numbers as floats.
merged()
{
    awk 'function show() { if (end) printf "%.0f %.0f\n", begin, end - begin }
        $1 != end { show(); begin = $1 }
        { end = $2 }
        END { show() }'
}

# theirs NAME: the same from QEMU, to which dirty is what has no data.
theirs()
{
    run qemu-img map --output=json --image-opts \
        "driver=nbd,server.type=unix,server.path=${uri##*=},x-dirty-bitmap=qemu:dirty-bitmap:${1//,/,,}"
    jq -r '.[] | select(.data | not) | "\(.start) \(.start + .length)"' <<<"$out" | merged
}

# same_ranges NAME COUNT WHAT: both programs see the same ranges, and so many.
same_ranges()
{
    ours "$1" >"$tmp/ours"
    theirs "$1" >"$tmp/theirs"
    is "$(wc -l <"$tmp/ours")" "$2" "$3: so many ranges"
    check "$3: those that QEMU sees" cmp "$tmp/ours" "$tmp/theirs"
}

# make_disk SIZE: $image of that size, with a bitmap "fine" of 4 KiB.
image=$tmp/disk.qcow2
make_disk()
{
    must qemu-img create -q -f qcow2 "$image" "$1"
    must qemu-img bitmap --add -g 4096 "$image" fine
}

# write_disk QEMU-IO-COMMAND...
write_disk()
{
    local commands=() command
    for command; do
        commands+=(-c "$command")
    done
    must qemu-io -f qcow2 "${commands[@]}" "$image"
}

# with_bitmap NAME: serves the disk with it. One client at a time, so nothing may connect twice.
with_bitmap()
{
    serve_qemu bitmap qcow2 "$image" -r -B "$1"
    server=$REPLY
}

# ---- what was written after the bitmap was made ----

odd='with "quotes", a comma and ü'
make_disk 20M
write_disk 'write 8M 1M'
must qemu-img bitmap --remove "$image" fine
must qemu-img bitmap --add -g 4096 "$image" fine
must qemu-img bitmap --add "$image" "$odd"
write_disk 'write 0 4k' 'write 1M 64k' 'discard 5M 1M' 'write 6M 100' 'write 20967424 4k'
must qemu-img bitmap --add "$image" clean

with_bitmap fine
same_ranges fine 4 "a bitmap of 4 KiB"
is "$(cat "$tmp/ours")" "$(printf '%s\n' '0 4096' '1048576 65536' '5242880 1052672' '20967424 4096')" "what was written"
run_ok "as JSON" blockmig map --json --bitmap=fine "$uri"
is "$(jq -r '.schema, .command, .bitmap, .virtual_size, .complete' <<<"$out" | xargs)" \
    "1 map fine $((20 << 20)) true" "it says what it is about"
run_ok "as text" blockmig map --bitmap=fine "$uri"
is "$(awk '$3 == "dirty" { print $1, $2 }' <<<"$out")" "$(cat "$tmp/ours")" "the table has the same ranges"
like "$out" '^4 extents; dirty: .*\(1126400 bytes\)$' "and their sum"
fails_with 3 "another bitmap" blockmig map --bitmap=coarse "$uri"
like "$err" 'bitmap.sock: the server has no dirty bitmap "coarse"$' "is not there, by name"
is "$out" "" "and nothing is listed"
fails_with 3 "nor is one without a name" blockmig map --json --bitmap= "$uri"
is "$(jq -r .result <<<"$out")" refused "and there is one object that says so"
stop_process "$server"

with_bitmap "$odd"
same_ranges "$odd" 4 "a bitmap of 64 KiB with a name that needs care"
run blockmig map --json --bitmap="$odd" "$uri"
is "$(jq -r .bitmap <<<"$out")" "$odd" "the name is told as it is"
stop_process "$server"

with_bitmap clean
same_ranges clean 0 "a clean bitmap"
stop_process "$server"

serve_qemu none qcow2 "$image" -r
fails_with 3 "a server without bitmaps" blockmig map --bitmap=fine "$uri"
like "$err" 'no dirty bitmap "fine"' "is told"
stop_process "$REPLY"
serve_kit old --no-sr memory 1M
fails_with 3 "a server that has never heard of them, too" blockmig map --bitmap=fine "$uri"
stop_process "$REPLY"

# ---- more than one request, and more than one answer ----

make_disk 9G
write_disk 'write 1073737728 8k' 'write 4294959104 16k' 'write 5G 4k' 'discard 6G 1G' 'discard 7G 1G' 'write 9663672320 4k'
with_bitmap fine
same_ranges fine 5 "more than 4 GiB, with ranges across what one request may ask"
stop_process "$server"

# QEMU puts 131,072 ranges into an answer; what lies far behind them is not part of it.
make_disk 3G
for ((i = 0; i < 70000; i++)); do
    echo "discard $((i * 8192)) 4096"
done >"$tmp/commands"
echo 'write 2500M 4k' >>"$tmp/commands"
must bash -c 'qemu-io -t unsafe -f qcow2 "$1" <"$2" >/dev/null' - "$image" "$tmp/commands"
with_bitmap fine
same_ranges fine 70001 "more ranges than one answer holds"
stop_process "$server"

# ---- answers that qemu-nbd does not give ----

# odd_server SIZE ANSWER...: blocks of 4 KiB; see the helper.
odd_server()
{
    serve odd python3 "$srcdir/tests/helpers/nbd-bitmap-server.py" SOCKET "$1" 4096 "${@:2}"
}

odd_server 40960 1536:0,1024:1 3584:3,4608:2 4096:1 4096:1 4096:0 4096:2,1000000:5
is "$(ours odd)" "$(printf '%s\n' '1536 2048' '8192 8192' '24576 16384')" \
    "answers that end within blocks, are short or go too far"
stop_process "$REPLY"
odd_server 40960 4096:1,4096:0 close
fails_with 8 "a connection that breaks" blockmig map --json --bitmap=odd "$uri"
is "$(jq -c '[.complete, .extents[].offset]' <<<"$out")" "[false,0]" "the one object has what was told till then"
like "$(jq -r .error <<<"$out")" "the server is gone" "and why that is not all"
stop_process "$REPLY"
odd_server 40960 4096:1 none
fails_with 1 "a server that answers nothing" timeout 30 "$blockmig" map --bitmap=odd "$uri"
like "$err" 'from offset 4096' "is not asked for ever"
stop_process "$REPLY"
odd_server 40960 0:1
fails_with 1 "nor is one whose ranges are empty" timeout 30 "$blockmig" map --bitmap=odd "$uri"
stop_process "$REPLY"

# ---- what has no bitmaps ----

fails_with 8 "nobody there" blockmig map --bitmap=fine "nbd+unix:///?socket=$tmp/nobody"
fails_with 2 "an image's own bitmaps" blockmig map --bitmap=fine "$image"
like "$err" 'disk.qcow2: bitmaps are read from NBD servers only' "are not read"
fails_with 2 "nor has an iSCSI unit any" blockmig map --bitmap=fine iscsi://127.0.0.1/iqn.2026-11.example:a/1
for option in -fraw --parent=a --allow-root=/ --secret=a -U; do
    fails_with 2 "$option is about images" blockmig map --bitmap=fine "$option" "$uri"
done
done_testing
