#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# nbdkit is killed in the middle of writes and flushes: what was flushed is there, what was not is old or new, no byte is
# anything else, and the next server goes on with a sound image.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbdkit.sh"
need_tool python3 stdbuf
use_seed
cd "$tmp" || exit
size=$((8 << 20)) half=$((4 << 20))

cat >compare.py <<'E2'
"""compare.py MODEL GOT HALF: alike up to HALF; behind it a byte may also be 0xbb."""
import sys
model, got = (open(path, "rb").read() for path in sys.argv[1:3])
half = int(sys.argv[3])
assert len(model) == len(got), "size"
assert model[:half] == got[:half], "what was flushed is not there"
assert all(a == b or b == 0xbb for a, b in zip(model[half:], got[half:])), "bytes that nobody wrote"
print(sum(b == 0xbb for b in got[half:]))
E2

has_written()
{
    [ "$(grep -c wrote writes.log)" -gt "$1" ] || ! kill -0 "$writer"
}

# killed: what is flushed goes into the first half and into model.raw, what comes after it into the second.
killed()
{
    local first more=() i
    random_writes "$half" 12
    first=("${commands[@]}")
    for ((i = 0; i < 1500; i++)); do
        below $((half - (64 << 10)))
        more+=(-c "write -P 0xbb $((half + REPLY)) $((1 << RANDOM % 17))")
        [ $((RANDOM % 10)) -ne 0 ] || more+=(-c flush)
    done
    serve -- child "${parameters[@]}"
    local server=$REPLY
    start stdbuf -oL qemu-io -f raw "${first[@]}" -c flush "${more[@]}" "$uri" >writes.log 2>&1
    writer=$REPLY
    wait_for 30 has_written $((13 + RANDOM % 200))
    kill -KILL "$server"
    wait "$server" "$writer" 2>/dev/null
    [ "$(grep -c wrote writes.log)" -ge 1512 ] || inside=$((inside + 1))
    must qemu-io -f raw "${first[@]}" model.raw
    must "$blockmig" copy -q --force --verify=none -O raw "${options[@]}" child got.raw
    run python3 compare.py model.raw got.raw "$half"
    [ "$status" -eq 0 ] || wrong+="$err; "
    must cp got.raw model.raw
}

for format in qcow2 vhd vhdx vdi vmdk; do
    rm -f base child model.raw
    must truncate -s "$size" model.raw
    must "$blockmig" create -q -O "$format" base "$size"
    parameters=() options=() wrong='' inside=0
    random_writes "$size" 10
    once "$(printf '%q ' qemu-io -f raw "${commands[@]}") \"\$uri\"" -- base
    must qemu-io -f raw "${commands[@]}" model.raw
    must "$blockmig" create -q -O "$format" --parent base child
    [ "$format" != vdi ] || { parameters=(parent=base) options=(--parent base); }
    for ((kill = 0; kill < 3; kill++)); do
        killed
    done
    is "$wrong" "" "$format: what was flushed is there, after every kill"
    check "$format: $inside of 3 times it was killed while it wrote" test "$inside" -gt 0
    check "its parent is sound" "$blockmig" info -q base
    random_writes "$size" 5
    once "$(printf '%q ' qemu-io -f raw "${commands[@]}") \"\$uri\"" -- child "${parameters[@]}"
    is "$status $err" "0 " "the next server goes on"
    must qemu-io -f raw "${commands[@]}" model.raw
    run_ok "with all that was there" blockmig verify -q --strict -F raw "${options[@]}" child model.raw
    case $format in
        qcow2) image_clean child "and QEMU finds it sound" ;;
        vhd) check "and so does the book" python3 "$srcdir/tests/read-vhd.py" book.raw child base ;;
        vdi) check "and so does the book" python3 "$srcdir/tests/read-vdi.py" book.raw child base ;;
        vmdk) same_content child model.raw "and so does QEMU" -f vmdk -F raw ;;
    esac
done
done_testing
