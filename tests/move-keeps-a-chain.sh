#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --chain=keep copies every layer below a running machine's disk as it is, one that several disks stand on once;
# --chain=shallow leaves them where they are.  What the machine writes goes into the top image only.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 2G

# backing IMAGE: the name and format in its header.
backing()
{
    qemu-img info -U --output=json "$1" | jq -r '"\(."backing-filename" // "none") \(."backing-filename-format" // "none")"'
}

# chain DIRECTORY SIZE: low.raw, middle.qcow2 and disk.qcow2, with data that only the lower ones have.
chain()
{
    mkdir -p "$1"
    must qemu-img create -q -f raw "$1/low.raw" "$2"
    must qemu-io -f raw -c 'write -P 1 20M 8M' "$1/low.raw"
    must qemu-img create -q -f qcow2 -F raw -b low.raw "$1/middle.qcow2"
    must qemu-io -f qcow2 -c 'write -P 2 24M 2M' -c 'write -z 21M 1M' "$1/middle.qcow2"
    must qemu-img create -q -f qcow2 -F qcow2 -b middle.qcow2 "$1/disk.qcow2"
    must qemu-io -f qcow2 -c 'write -P 3 27M 5000' "$1/disk.qcow2"
}

# content_is_right NAME IMAGE FORMAT
content_is_right()
{
    run qemu-io -r -f "$3" -c 'read -P 1 20M 1M' -c 'read -P 0 21M 1M' -c 'read -P 1 22M 2M' -c 'read -P 2 24M 2M' \
        -c 'read -P 3 27M 5000' -c 'read -P 0 28M 1M' "$2"
    unlike "$out$err" 'failed|open' "$1: all layers are there to be read"
}

# receipts NAME: every layer of the last report that the machine does not write to is what its receipt says.
receipts()
{
    local target receipt format
    while IFS=$'\t' read -r target format receipt; do
        run_ok "$1: $(basename "$target") is what its receipt says" blockmig verify -f "$format" "$target" \
            --receipt "$receipt"
    done < <(jq -r '.disks[] | select(.digest_of_layer) | [.target, .target_format, .receipt] | @tsv' "$tmp/$1.json")
}

# moved NAME STYLE OPTION...: starts a machine on $tmp/NAME.a/disk.qcow2 and moves it to $tmp/NAME.b.
moved()
{
    local name=$1 style=$2
    shift 2
    mkdir -p "$tmp/$name.b"
    before=$(cd "$tmp/$name.a" && sha256sum low.raw middle.qcow2)
    start_guest "$name" "$style" --disk "$tmp/$name.a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json "$@"
    is "$status" 0 "$name: moved"
    [ "$status" -eq 0 ] || diag "$err"
    cp /dev/stdin "$tmp/$name.json" <<<"$out"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    is "$(cd "$tmp/$name.a" && sha256sum low.raw middle.qcow2)" "$before" "$name: the lower images are as they were"
    is "$(files "$tmp/$name.a")" "disk.qcow2.blockmig-source low.raw middle.qcow2 " "$name: nothing else is left of it"
    run_ok "$name: the kept source is what the receipt says" blockmig verify "$tmp/$name.a/disk.qcow2.blockmig-source" \
        --receipt "$(jq -r .receipt "$tmp/$name.json")"
}

# ---- keep ----

kept()
{
    local name=$1
    is "$(files "$tmp/$name.b")" "disk.qcow2 low.raw middle.qcow2 " "$name: three images are there"
    is "$(jq -c '[.disks[] | [.disk, .digest_of_layer]]' "$tmp/$name.json")" \
        '[["low.raw",true],["middle.qcow2",true],["'"$2"'",false]]' "$name: the report has all of them"
    is "$(backing "$tmp/$name.b/disk.qcow2"), $(backing "$tmp/$name.b/middle.qcow2")" "middle.qcow2 qcow2, low.raw $3" \
        "$name: they name each other"
    same_content "$tmp/$name.a/middle.qcow2" "$tmp/$name.b/middle.qcow2" "$name: the middle one is the same disk"
    image_clean "$tmp/$name.b/middle.qcow2" "$name: the middle one is clean"
    image_clean "$tmp/$name.b/disk.qcow2" "$name: the top one is clean"
    content_is_right "$name" "$tmp/$name.b/disk.qcow2" qcow2
    is "$(qemu-img map --output=json "$tmp/$name.b/disk.qcow2" | jq '[.[] | select(.start < 25165824 and .start + .length > 22020096) | .depth] | max')" 2 \
        "$name: what only the lowest has is not copied up"
    receipts "$name"
    mv "$tmp/$name.a" "$tmp/$name.gone"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/disk.qcow2" qcow2)" '^OK [1-9]' "$name: the host agrees, without the source"
    receipts "$name"
}

chain "$tmp/keep.a" 40M
moved keep --libvirt-style --chain=keep
kept keep vd0 raw
chain "$tmp/convert.a" 33300480
moved convert --drive-style --chain=keep -O qcow2
kept convert drive0 qcow2
chain "$tmp/mirror.a" 40M
moved mirror --libvirt-style --chain=keep --method=mirror
kept mirror vd0 raw

# ---- shallow ----

chain "$tmp/shallow.a" 40M
moved shallow --libvirt-style --chain=shallow
is "$(files "$tmp/shallow.b")" "disk.qcow2 " "shallow: one image is there"
is "$(backing "$tmp/shallow.b/disk.qcow2")" "$tmp/shallow.a/middle.qcow2 qcow2" "shallow: it names the old one below"
content_is_right shallow "$tmp/shallow.b/disk.qcow2" qcow2
like "$(host_verdict shallow 0 "$tmp/shallow.b/disk.qcow2" qcow2)" '^OK [1-9]' "shallow: the host agrees"
start_guest shallow --libvirt-style --disk "$tmp/shallow.b/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
guest_wait_ready shallow 2
fails_with 3 "shallow: a raw image cannot stand on another" blockmig move "qmp:$tmp/shallow/qmp" "$tmp/shallow.a" \
    --chain=shallow -O raw
fails_with 3 "shallow: nor can one of a kept chain" blockmig move "qmp:$tmp/shallow/qmp" "$tmp/shallow.a" --chain=keep \
    -O raw
stop_guest shallow

# ---- two disks on one base ----

mkdir "$tmp/a" "$tmp/b" "$tmp/c"
must qemu-img create -q -f qcow2 "$tmp/a/base.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 1 20M 8M' "$tmp/a/base.qcow2"
must qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 "$tmp/a/one.qcow2"
must qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 "$tmp/a/two.qcow2" 96M
must qemu-img create -q -f raw "$tmp/a/three.raw" 10M
must cp "$tmp/a/base.qcow2" "$tmp/base"
start_guest g --disk "$tmp/a/one.qcow2:qcow2" --disk "$tmp/a/two.qcow2:qcow2" --disk "$tmp/a/three.raw:raw" \
    --append 'span=8M flush=64 log=1'
guest_wait_ready g
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --disk vd0 --disk vd1 --chain=keep --json
is "$status" 0 "two disks on one base are moved, the third stays"
[ "$status" -eq 0 ] || diag "$err"
cp /dev/stdin "$tmp/g.json" <<<"$out"
is "$(jq -c '[.disks[].disk]' "$tmp/g.json")" '["base.qcow2","vd0","vd1"]' "the base is copied once"
is "$(files "$tmp/b")" "base.qcow2 one.qcow2 two.qcow2 " "and is there once"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start

# A disk that is moved alone must not change what its sibling stands on.
run blockmig move "qmp:$tmp/g/qmp" "$tmp/c" "${patient[@]}" --disk vd1 --chain=keep --json
is "$status" 0 "one of them is moved on alone"
[ "$status" -eq 0 ] || diag "$err"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
for base in a b c; do
    same_content "$tmp/base" "$tmp/$base/base.qcow2" "the base in $base is as it was"
done
receipts g
for disk in "0 b/one.qcow2 qcow2" "1 c/two.qcow2 qcow2" "2 a/three.raw raw"; do
    read -r number image format <<<"$disk"
    like "$(host_verdict g "$number" "$tmp/$image" "$format")" '^OK [1-9]' "the host agrees for $image"
done
done_testing
