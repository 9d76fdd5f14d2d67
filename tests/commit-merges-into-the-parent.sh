#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# blockmig commit: the parent shows what the overlay showed, zeros included, in every format that can be written;
# killed at any moment, overlay and parent still show the disk, and the merge goes on. What is in use is refused.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq python3
use_seed
driver=$builddir/tests/helpers/image-driver

# make_layers FORMAT SIZE: base, a parent over it and an overlay; the content goes to model.raw (all layers) and below.raw
# (without the overlay). Sets `parents`: what a command on the overlay needs; `lower`: the same on its parent. VDI
# children have blocks of any size, also some that are larger than what is written at once.
make_layers()
{
    local format=$1 size=$2 base_format=$1 blocks=(8k 1M 4M 64M)
    local options="block_size=${blocks[RANDOM % 4]}"
    rm -rf "$tmp/m"
    mkdir "$tmp/m"
    parents=() lower=()
    [ "$format" = qcow2 ] && base_format=raw
    must "$driver" create "$base_format" "$tmp/m/base" "$size" ""
    must "$driver" random "$base_format" "$tmp/m/base" "$tmp/m/model.raw" "$RANDOM" 30
    must cp "$tmp/m/model.raw" "$tmp/m/base.raw"
    [ "$format" = vdi ] || options=
    must "$driver" create "$format" "$tmp/m/parent" "$size" "$options" base "$base_format"
    must "$driver" random "$format" "$tmp/m/parent" "$tmp/m/model.raw" "$RANDOM" 30 "raw:base.raw"
    must cp "$tmp/m/model.raw" "$tmp/m/below.raw"
    must "$driver" create "$format" "$tmp/m/overlay" "$size" "$options" parent "$format"
    must "$driver" random "$format" "$tmp/m/overlay" "$tmp/m/model.raw" "$RANDOM" 30 "raw:below.raw"
    if [ "$format" = vdi ]; then
        parents=(--parent "$tmp/m/parent" --parent "$tmp/m/base")
        lower=(--parent "$tmp/m/base")
    fi
}

# knows CHILD PARENT: the locator of a VHDX has the DataWriteGuid that its parent has now, as parent_linkage2.
knows()
{
    python3 - "$1" "$2" <<'END'
import struct, sys, uuid
child, parent = (open(path, "rb").read() for path in sys.argv[1:])
heads = [parent[at:at + 4096] for at in (1 << 16, 1 << 17)]
written = max(heads, key=lambda head: struct.unpack_from("<Q", head, 8))[32:48]
region = child.index(uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le, 192 << 10)
metadata = struct.unpack_from("<Q", child, region + 16)[0]
entry = child.index(uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le, metadata)
item = metadata + struct.unpack_from("<I", child, entry + 16)[0]
pairs = {}
for i in range(struct.unpack_from("<H", child, item + 18)[0]):
    key, value, key_length, value_length = struct.unpack_from("<IIHH", child, item + 20 + i * 12)
    pairs[child[item + key:item + key + key_length].decode("utf-16-le")] = \
        child[item + value:item + value + value_length].decode("utf-16-le")
sys.exit(pairs["parent_linkage2"] != "{%s}" % uuid.UUID(bytes_le=written))
END
}

# shows IMAGE RAW PARENT-OPTIONS...
shows()
{
    blockmig verify -q --strict -F raw "${@:3}" "$1" "$2"
}

for format in qcow2 vhd vhdx vdi vmdk; do
    make_layers "$format" $((5 << 20))
    cp -r "$tmp/m" "$tmp/kept"
    run_ok "$format: a plan" blockmig commit -n "${parents[@]}" "$tmp/m/overlay"
    check "changes nothing" cmp "$tmp/m/parent" "$tmp/kept/parent"
    run_ok "$format: the overlay is merged" blockmig commit --json "${parents[@]}" "$tmp/m/overlay"
    is "$(jq -r '.result, .source, .parent_format' <<<"$out" | xargs)" "done kept $format" "the report says so"
    run_ok "the parent shows the disk" shows "$tmp/m/parent" "$tmp/m/model.raw" "${lower[@]}"
    run_ok "so does the overlay still" shows "$tmp/m/overlay" "$tmp/m/model.raw" "${parents[@]}"
    case $format in # whoever goes by a record of the parent's identity sees it so, too
        vhdx) check "whose link is the parent's new identity" knows "$tmp/m/overlay" "$tmp/m/parent" ;;
        vdi) check "to the book, too" python3 "$srcdir/tests/read-vdi.py" "$tmp/book.raw" "$tmp/m/overlay" "$tmp/m/parent" "$tmp/m/base" ;;
        vmdk) check "to QEMU, too" qemu-img convert -f vmdk -O raw "$tmp/m/overlay" "$tmp/book.raw" ;;
        *) check "which was not changed" cmp "$tmp/m/overlay" "$tmp/kept/overlay" ;;
    esac
    [ ! -e "$tmp/book.raw" ] || check "to the byte" cmp "$tmp/book.raw" "$tmp/m/model.raw"
    rm -f "$tmp/book.raw"
    check "nor was the base" cmp "$tmp/m/base" "$tmp/kept/base"
    case $format in
        qcow2) image_clean "$tmp/m/parent" "QEMU finds the parent sound" ;;
        vhd) check "the book agrees" python3 "$srcdir/tests/read-vhd.py" "$tmp/book.raw" "$tmp/m/parent" "$tmp/m/base" ;;
        vdi) check "the book agrees" python3 "$srcdir/tests/read-vdi.py" "$tmp/book.raw" "$tmp/m/parent" "$tmp/m/base" ;;
        vmdk) check "QEMU agrees" qemu-img convert -f vmdk -O raw "$tmp/m/parent" "$tmp/book.raw" ;;
    esac
    [ ! -e "$tmp/book.raw" ] || check "to the byte" cmp "$tmp/book.raw" "$tmp/m/model.raw"
    run_ok "$format: and the parent into the base" blockmig commit -q --delete-source "${lower[@]}" "$tmp/m/parent"
    check "which is deleted, for that was asked" test ! -e "$tmp/m/parent"
    case $format in qcow2) base=raw ;; *) base=$format ;; esac
    run_ok "the base shows the disk" blockmig verify -q --strict -f "$base" -F raw "$tmp/m/base" "$tmp/m/model.raw"
    case $format in
        vhd) same_content "$tmp/m/base" "$tmp/m/model.raw" "to QEMU, too" -f vpc -F raw ;;
        *) same_content "$tmp/m/base" "$tmp/m/model.raw" "to QEMU, too" -f "$base" -F raw ;;
    esac
    fails_with 3 "$format: a base has nothing below it" blockmig commit -f "$base" "$tmp/m/base"
    rm -rf "$tmp/kept" "$tmp/book.raw"
done

# An overlay that holds nothing: its parent is not changed, and it knows its parent still, for others, too.
make_layers vdi $((5 << 20))
must "$driver" create vdi "$tmp/m/empty" $((5 << 20)) "" overlay vdi
run_ok "vdi: an overlay that holds nothing" blockmig commit -q --parent "$tmp/m/overlay" "${parents[@]}" "$tmp/m/empty"
check "is still its parent's child to the book" python3 "$srcdir/tests/read-vdi.py" "$tmp/book.raw" \
    "$tmp/m/empty" "$tmp/m/overlay" "$tmp/m/parent" "$tmp/m/base"
make_layers vmdk $((5 << 20))
must "$driver" create vmdk "$tmp/m/empty" $((5 << 20)) "" overlay vmdk
run_ok "vmdk: an overlay that holds nothing" blockmig commit -q "$tmp/m/empty"
check "is still its parent's child to QEMU" qemu-img convert -f vmdk -O raw "$tmp/m/empty" "$tmp/book.raw"

# ---- killed -----------------------------------------------------------------------------------------

# has_changed PID TIME: the merge has begun to write, or has ended.
has_changed()
{
    [ "$(stat -c %.Y "$tmp/m/parent")" != "$2" ] || ! kill -0 "$1"
}

# killed FORMAT: again and again, every time a moment after it began to write.
killed()
{
    local format=$1 kills=0 inside=0 pid before
    make_layers "$format" $((24 << 20))
    while [ "$kills" -lt 6 ] || { [ "$inside" -eq 0 ] && [ "$kills" -lt 60 ]; }; do
        before=$(stat -c %.Y "$tmp/m/parent")
        "$blockmig" commit -q --bandwidth=$((1 + RANDOM % 12))MiB/s "${parents[@]}" "$tmp/m/overlay" 3>&- &
        pid=$!
        until has_changed "$pid" "$before"; do
            :
        done
        sleep "0.0$((RANDOM % 4))$((RANDOM % 10))"
        kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
        [ $? -ne 137 ] || inside=$((inside + 1))
        kills=$((kills + 1))
        shows "$tmp/m/overlay" "$tmp/m/model.raw" "${parents[@]}" || return
    done
    echo "$inside of $kills kills were inside"
    [ "$inside" -gt 0 ] || return
    blockmig commit -q "${parents[@]}" "$tmp/m/overlay" && shows "$tmp/m/parent" "$tmp/m/model.raw" "${lower[@]}" || return
    [ "$format" != qcow2 ] || qemu-img check "$tmp/m/parent"
}
pick 1 20
for format in qcow2 vhd vhdx vdi vmdk; do
    repeat "$REPLY" "$format: six kills, then the merge goes on" killed "$format"
done

# ---- what is in the way -----------------------------------------------------------------------------

make_layers qcow2 $((5 << 20))
must qemu-img rebase -u -F qcow2 -b parent "$tmp/m/overlay"
if command -v qemu-system-x86_64 >/dev/null; then
    running_machine "$tmp/m/overlay" qcow2
    before=$(sha256sum "$tmp/m/parent")
    fails_with 3 "the disk of a running machine is refused" blockmig commit "$tmp/m/overlay"
    like "$err" "lock" "and the lock is named"
    is "$(sha256sum "$tmp/m/parent")" "$before" "the parent was not touched"
    stop_process "$REPLY"
else
    skip "there is no QEMU" "the disk of a running machine is refused"
fi
must qemu-img create -q -f qcow2 -b parent -F qcow2 "$tmp/m/longer" 6M
fails_with 3 "an overlay that is larger than its parent is refused" blockmig commit "$tmp/m/longer"
like "$err" "6291456 bytes, its parent .* 5242880" "with both sizes"
must qemu-img create -q -f qcow2 -b parent -F qcow2 "$tmp/m/shorter" 4M
fails_with 3 "so is one that is smaller: the parent would show more than it" blockmig commit "$tmp/m/shorter"
like "$err" "4194304 bytes, its parent .* 5242880" "with both sizes"
must "$blockmig" create -q -O qcow2 "$tmp/m/alone" 5M
must "$blockmig" create -q -O qcow2 --parent "$tmp/m/alone" "$tmp/m/child"
fails_with 3 "so is a parent that was given, but is none of the images'" \
    blockmig commit --parent "$tmp/m/longer" "$tmp/m/child"
like "$err" "alone: the parent that was given for it does not stand in the image" "and it is told why"
for format in vhdx vdi vmdk; do
    make_layers "$format" $((5 << 20))
    must "$driver" create "$format" "$tmp/m/sibling" $((5 << 20)) "" parent "$format"
    run_ok "$format: of two children one is merged" blockmig commit -q "${parents[@]}" "$tmp/m/overlay"
    fails_with 3 "the other one sees that its parent has changed" blockmig info --json "${parents[@]}" "$tmp/m/sibling"
    like "$err" "changed|was written to since" "and says so"
done
done_testing
