#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# QCOW images of version 1, by QEMU and VirtualBox, read as their makers read them. They do not say of which format
# their backing file is: the user must.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io tar xz jq
use_seed

# reads_like_qemu WHAT IMAGE COPY-ARGUMENTS...
reads_like_qemu()
{
    local what=$1 image=$2
    shift 2
    rm -f "$tmp/ours.raw"
    must qemu-img convert -f qcow -O raw "$image" "$tmp/theirs.raw"
    run_ok "$what: is copied" blockmig copy -q -O raw "$@" "$image" "$tmp/ours.raw"
    check "$what: the content is QEMU's" cmp "$tmp/theirs.raw" "$tmp/ours.raw"
}

# ---- QEMU -------------------------------------------------------------------------------------------

for size in 512 66048 9M 150M; do
    rm -f "$tmp"/*.qcow
    make_pattern_image "$tmp/base.qcow" qcow "$size" 40
    reads_like_qemu "$size" "$tmp/base.qcow"
    if [[ $size == *M ]]; then # QEMU compresses whole clusters only; it fails at the end, with all in place
        run qemu-img convert -c -f qcow -O qcow "$tmp/base.qcow" "$tmp/packed.qcow"
        same_content "$tmp/base.qcow" "$tmp/packed.qcow" "$size: QEMU has compressed it" -f qcow -F qcow
        reads_like_qemu "$size, compressed" "$tmp/packed.qcow"
    fi
    must qemu-img create -q -f qcow -b base.qcow -F qcow "$tmp/over.qcow"
    write_patterns "$tmp/over.qcow" qcow "$(qemu-img info --output=json "$tmp/over.qcow" | jq '."virtual-size"')" 10
    reads_like_qemu "$size, an overlay" "$tmp/over.qcow" --parent "qcow:$tmp/base.qcow"
done
run_ok "info" blockmig info --json "$tmp/packed.qcow"
is "$(jq -r '"\(.format) \(.probed) \(.virtual_size)"' <<<"$out")" "qcow true $((150 << 20))" "knows what it is"
mkdir "$tmp/kept"
run_ok "a chain is kept in another format" \
    blockmig copy -q --chain=keep -O qcow2 --parent "qcow:$tmp/base.qcow" "$tmp/over.qcow" "$tmp/kept/over.qcow2"
same_content "$tmp/over.qcow" "$tmp/kept/over.qcow2" "and reads the same" -f qcow -F qcow2
fails_with 3 "but not written in this one" blockmig copy "$tmp/packed.qcow" "$tmp/no.qcow"
like "$err" "qcow can be read but not written" "the message says so"

# ---- backing files ----------------------------------------------------------------------------------

fails_with 3 "without a word about its backing file an overlay is refused" blockmig copy -O raw "$tmp/over.qcow" "$tmp/no.raw"
like "$err" 'backing file "base.qcow" of .*over.qcow: .*is not guessed; give it with --parent FORMAT:FILE' "and what to do is said"
random_file "$tmp/disk.raw" 1M 3
must qemu-img create -q -f qcow -b disk.raw -F raw "$tmp/raw.qcow"
fails_with 3 "what looks raw is not taken for it" blockmig copy -O raw --parent "$tmp/disk.raw" "$tmp/raw.qcow" "$tmp/no.raw"
run_ok "unless the user says so" blockmig copy -q -O raw --parent "raw:$tmp/disk.raw" "$tmp/raw.qcow" "$tmp/of-raw"
check "and then it is right" cmp "$tmp/disk.raw" "$tmp/of-raw"

# ---- VirtualBox -------------------------------------------------------------------------------------

must tar -C "$tmp" -xJf "$srcdir/tests/images/virtualbox-vmdk-qcow.tar.xz"
run_ok "VirtualBox's base" blockmig copy -q -O raw "$tmp/vbox-qcow2.qcow" "$tmp/b.raw"
is "$(sha256sum <"$tmp/b.raw")" "39cfbe214cf111da19bd93ddc134f84a8dd999d09e1ab4c5cdc35d0391981f30  -" "is right"
run_ok "VirtualBox's overlay" \
    blockmig copy -q -O raw --parent "qcow:$tmp/vbox-qcow2.qcow" "$tmp/vbox-qcow2-d1.qcow" "$tmp/d1.raw"
is "$(sha256sum <"$tmp/d1.raw")" "7a2a9c6194c015eba8f50daa4d674352a0b74ff5b4f5ef221585151e774398fc  -" "is right"
done_testing
