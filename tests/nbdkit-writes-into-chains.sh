#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What is written through the nbdkit plugin into a chain of any format, by several clients at once, too, is what others read
# from it; layers below stay as they are, thin stays thin, and what is in use is refused.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbdkit.sh"
need_tool python3
use_seed
cd "$tmp" || exit
size=$(((6 << 20) + 512 * (RANDOM % 2000 + 1)))

# written WHAT IMAGE COUNT [plain]: random writes through the plugin and into model.raw; `parameters` are those of the
# plugin, `options` of blockmig.
written()
{
    random_writes "$size" "$3" ${4:+"$4"}
    once "$(printf '%q ' qemu-io -f raw "${commands[@]}") \"\$uri\"" -- "$2" "${parameters[@]}"
    is "$status $err" "0 " "$1: is written"
    must qemu-io -f raw "${commands[@]}" model.raw
    run_ok "and reads so" blockmig verify -q --strict -F raw "${options[@]}" "$2" model.raw
}

# judged FORMAT TOP BASE: by a reader that is not ours.
judged()
{
    rm -f book.raw
    case $1 in
        qcow2)
            same_content "$2" model.raw "QEMU reads it so" -f qcow2 -F raw
            image_clean "$2" "and finds it sound"
            return
            ;;
        vmdk) check "QEMU reads it" qemu-img convert -f vmdk -O raw "$2" book.raw ;;
        vhd) check "the book reads it" python3 "$srcdir/tests/read-vhd.py" book.raw "$2" ${3:+"$3"} ;;
        vdi) check "the book reads it" python3 "$srcdir/tests/read-vdi.py" book.raw "$2" ${3:+"$3"} ;;
        vhdx) check "libvhdi reads it" /usr/bin/python3 "$srcdir/tests/read-libvhdi.py" book.raw "$2" ${3:+"$3"} ;;
    esac
    check "to the byte" cmp book.raw model.raw
}

for format in qcow2 vhd vhdx vdi vmdk; do
    rm -f model.raw base child
    must truncate -s "$size" model.raw
    must "$blockmig" create -q -O "$format" base "$size"
    parameters=() options=()
    written "$format: a base" base 40
    [ "$format" = vhdx ] || judged "$format" base ""
    [ "$format" != vhdx ] || same_content base model.raw "QEMU reads it so" -f vhdx -F raw
    must cp base base.kept

    create=()
    if [ "$format" = vdi ]; then
        parameters=(parent=base) options=(--parent base) create=(-o block_size=4M)
    fi
    must "$blockmig" create -q -O "$format" "${create[@]}" --parent base child
    # libvhdi shows the parent where zeros hide it.
    plain=
    [ "$format" != vhdx ] || plain=plain
    written "$format: a child" child 30 $plain
    judged "$format" child base
    written "$format: once more" child 20 $plain
    judged "$format" child base
    [ "$format" != vhdx ] || written "$format: with zeros" child 30
    check "its parent is not changed" cmp base base.kept

    # Many writes at once, with zeros for holes, on several connections.
    mixed_file model.new "$size" $RANDOM
    mv model.new model.raw
    once 'nbdcopy --connections=4 model.raw "$uri"' -- child "${parameters[@]}"
    is "$status $err" "0 " "$format: nbdcopy writes all of it"
    run_ok "and it reads so" blockmig verify -q --strict -F raw "${options[@]}" child model.raw
    [ "$format" = vhdx ] || judged "$format" child base
    check "its parent is not changed" cmp base base.kept
done

# ---- several at once --------------------------------------------------------------------------------

# clients COUNT: each of four writes, reads back and flushes in its own quarter, while another reads the whole disk.
clients()
{
    local quarter=$((4 << 20)) part i offset length pids=()
    for part in 0 1 2 3; do
        commands=()
        for ((i = 0; i < $1; i++)); do
            below $((quarter - 100000))
            offset=$((part * quarter + REPLY)) length=$((RANDOM * 3 + 1))
            commands+=(-c "aio_write -P $((RANDOM % 255 + 1)) $offset $length" -c aio_flush)
            [ $((RANDOM % 4)) -ne 0 ] || commands+=(-c "write -z -u $offset $((length / 2 + 1))" -c flush)
            commands+=(-c "read $((RANDOM * 500)) 64k")
        done
        must qemu-io -f raw "${commands[@]}" model.raw
        qemu-io -f raw "${commands[@]}" "$uri" >/dev/null 2>"errors.$part" 3>&- &
        pids+=($!)
    done
    must nbdcopy "$uri" null:
    wait "${pids[@]}"
}

for format in qcow2 vhd vhdx vdi vmdk; do
    rm -f model.raw base child
    must truncate -s 16M model.raw
    must "$blockmig" create -q -O "$format" base 16M
    must "$blockmig" create -q -O "$format" --parent base child
    parameters=() options=()
    [ "$format" != vdi ] || parameters=(parent=base) options=(--parent base)
    serve -- child "${parameters[@]}"
    server=$REPLY
    clients 25
    is "$(cat errors.?)" "" "$format: several clients write at once"
    must nbdcopy "$uri" seen.raw
    check "all of them see the same disk" cmp seen.raw model.raw
    stop_process "$server"
    run_ok "which is in the image when nbdkit has ended" \
        blockmig verify -q --strict -F raw "${options[@]}" child model.raw
done

# ---- thin -------------------------------------------------------------------------------------------

# Zeros of the layer below take no space when a block of ours is filled with them; trimmed bytes take none any more.
for format in qcow2 vhdx vdi vmdk; do
    rm -f base child
    must "$blockmig" create -q -O "$format" base 64M
    must "$blockmig" create -q -O "$format" --parent base child
    parameters=()
    [ "$format" != vdi ] || parameters=(parent=base)
    before=$(allocated child)
    once 'qemu-io -f raw -c "write -P 1 20M 4k" "$uri"' -- child "${parameters[@]}"
    grown=$(($(allocated child) - before))
    check "$format: 4 KiB over nothing take $grown bytes" test "$grown" -le $((256 << 10))
done
for format in raw qcow2 vhdx; do
    rm -f base
    must "$blockmig" create -q -O "$format" base 64M
    once 'qemu-io -f raw -c "write -P 1 0 32M" -c flush -c "discard 0 16M" -c "read -P 0 0 16M" -c "read -P 1 16M 16M" "$uri"' \
        -- format="$format" base
    is "$status" 0 "$format: a range is trimmed"
    unlike "$out" "failed" "it reads as zeros, the rest as before"
    once 'nbdinfo --map --json "$uri"' -r -- format="$format" base
    is "$(jq -c '.[0] | [.offset, .length, .type]' <<<"$out")" "[0,16777216,3]" "is a hole to clients"
    check "and is given back" test "$(allocated base)" -le $((17 << 20))
done

# Zeros that must not be holes.
rm -f base
must "$blockmig" create -q -O qcow2 base 64M
once 'qemu-io -f raw -c "write -z 0 8M" "$uri"' -- base
check "zeros that are to take their space take it" test "$(allocated base)" -ge $((8 << 20))
once 'qemu-io -f raw -c "write -z -u 0 8M" "$uri"' -- base
check "and others do not" test "$(allocated base)" -le $((1 << 20))

# ---- in use -----------------------------------------------------------------------------------------

rm -f base child
must "$blockmig" create -q -O vhdx base 16M
must "$blockmig" create -q -O vhdx --parent base child
serve -- child
server=$REPLY
must qemu-io -f raw -c "write -P 7 0 64k" "$uri"
fails_with 3 "a disk that is served for writing is refused by copy" blockmig copy -q -O raw child copy.raw
like "$err" "Failed to get" "for its lock"
fails_with 3 "its parent is not written to either" blockmig commit child
once true -r -- child
like "$err" "Failed to get" "nor is it served twice"
# A reader is let in beside readers; who wants to write is told when it connects.
stop_process "$server"
serve -r -- child
reader=$REPLY
must nbdinfo --size "$uri"
once 'nbdinfo --size "$uri"' -r -- child
is "$out" 16777216 "two servers may read it"
once 'nbdinfo --size "$uri"' -- child
is "$status" 1 "a writer beside a reader is refused"
like "$err" 'Failed to get .* lock' "and told why"
stop_process "$reader"

# A parent that only the user knows of would be forgotten by what is written.
must "$blockmig" create -q -O qcow2 alone.qcow2 16M
once 'nbdinfo --size "$uri"' -- alone.qcow2 parent=raw:model.raw
like "$err" "does not stand in the image" "no writes over a parent that the image does not know"
once 'nbdinfo --size "$uri"' -- model.raw
like "$err" "say format=raw" "nor into a disk that only looks raw"
once 'nbdinfo --size "$uri"' -- model.raw format=raw
is "$status" 0 "unless it is said to be raw"
done_testing
