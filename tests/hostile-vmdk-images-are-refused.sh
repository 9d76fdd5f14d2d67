#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted VMDKs end to end: refused with format, field and value, or read as they should.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-hostile.sh"

hostile_images vmdk 180
cut_everywhere good vmdk
cut_everywhere stream vmdk

# An extent that is cut is an error, or all that the disk shows is there.
for name in extent cowd sesparse; do
    wrong='' good=0
    cp "$images/$name-extent1.vmdk" "$tmp/whole"
    every 18
    size=$(stat -c %s "$tmp/whole")
    for ((cut = (first - 1) * 512; cut < size; cut += step * 512)); do
        head -c "$cut" "$tmp/whole" >"$images/$name-extent1.vmdk"
        run limited "$blockmig" copy -q -O raw "$images/$name.vmdk" "$tmp/copies/cut"
        if [ "$status" -eq 0 ]; then
            cmp -s "$images/$name.raw" "$tmp/copies/cut" && good=$((good + 1)) || wrong+="at $cut: different; "
        elif [[ ! $status =~ ^[1-5]$ ]] || [ -z "$err" ]; then
            wrong+="at $cut: exit $status: $err; "
        fi
        rm -f "$tmp/copies"/*
    done
    is "$wrong" "" "$name: its extent cut everywhere; $good times nothing was missing"
    cp "$tmp/whole" "$images/$name-extent1.vmdk"
done

# ---- raw disks that look like images ----------------------------------------------------------------

run_ok "a raw disk whose guest wrote a descriptor is copied as raw if the user says so" \
    limited "$blockmig" copy -q -f raw -O raw "$images/extent-system.vmdk" "$tmp/copies/raw"
check "to the last byte" cmp "$images/extent-system.vmdk" "$tmp/copies/raw"

# ---- what must not be written to --------------------------------------------------------------------

driver=$builddir/tests/helpers/image-driver
python3 - "$images" "$tmp" <<'PYTHON'
import sys
good = open(sys.argv[1] + "/good.vmdk", "rb").read()
def change(name, *patches):
    image = bytearray(good)
    for at, value in patches:
        image[at:at + 4] = value.to_bytes(4, "little")
    open(f"{sys.argv[2]}/{name}.vmdk", "wb").write(image)
change("double", (9 * 512 + 4, 16), (4 * 512 + 4, 16))
change("overlap", (9 * 512 + 4, 20), (4 * 512 + 4, 20))
change("on-table", (9 * 512 + 4, 12), (4 * 512 + 4, 12))
PYTHON
for name in double overlap on-table; do
    before=$(sha256sum <"$tmp/$name.vmdk")
    fails_with 4 "$name: a check finds it" "$driver" check vmdk "$tmp/$name.vmdk" look
    fails_with 1 "$name: it is not written to" "$driver" random vmdk "$tmp/$name.vmdk" "$tmp/model" 1 20
    like "$err" "two grains lie at offset|a grain lies on the grain table at offset" "$name: the message says where"
    is "$(sha256sum <"$tmp/$name.vmdk")" "$before" "$name: not one byte was changed"
done

# refuses_overlay NAME SIZE OFFSET WORDS: what an overlay of that size has at OFFSET is not merged into it, and not one byte is changed.
refuses_overlay()
{
    local name=$1 before
    rm -rf "$tmp/merge"
    mkdir "$tmp/merge"
    find "$images" \( -name "$name.vmdk" -o -name "$name-extent*" \) -exec cp -t "$tmp/merge" {} +
    must qemu-img create -q -f qcow2 -o cluster_size=512 "$tmp/merge/overlay" "$2"
    must qemu-io -f qcow2 -c "write -P 1 $3 512" "$tmp/merge/overlay"
    must qemu-img rebase -q -u -f qcow2 -b "$name.vmdk" -F vmdk "$tmp/merge/overlay"
    before=$(cd "$tmp/merge" && sha256sum -- *)
    fails_with 3 "$name: nothing is merged into it" blockmig commit "$tmp/merge/overlay"
    like "$err" "$4" "$name: the message says why"
    is "$(cd "$tmp/merge" && sha256sum -- *)" "$before" "$name: and nothing is changed"
}
refuses_overlay stream 64K 0 "takes data only whole and in order"
refuses_overlay row 69120 40K "row-extent2.vmdk: the descriptor says that this extent is only read"
refuses_overlay row 69120 32K "consists of zeros for good"
done_testing
