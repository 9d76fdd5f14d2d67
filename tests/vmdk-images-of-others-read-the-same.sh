#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# VMDK images of QEMU and VirtualBox, also several files and chains, read as their makers read them.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io nbdcopy qemu-nbd jq
use_seed

# ---- every subformat of QEMU ------------------------------------------------------------------------

mkdir "$tmp/qemu" "$tmp/copies"
mixed_file "$tmp/want.raw" 21M 7
for subformat in monolithicSparse monolithicFlat twoGbMaxExtentSparse twoGbMaxExtentFlat streamOptimized; do
    image=$tmp/qemu/$subformat.vmdk
    must qemu-img convert -f raw -O vmdk -o "subformat=$subformat" "$tmp/want.raw" "$image"
    run_ok "$subformat: is copied" blockmig copy -O raw "$image" "$tmp/copies/$subformat"
    check "$subformat: the content is right" cmp "$tmp/want.raw" "$tmp/copies/$subformat"
    is "$(blockmig info --json "$image" | jq -r '"\(.format) \(.probed) \(.chain[0].features.subformat)"')" \
        "vmdk true $subformat" "$subformat: info knows what it is"
    run_ok "$subformat: verify" blockmig verify "$image" "$tmp/copies/$subformat"
done

# ---- a disk of several extents ----------------------------------------------------------------------

image=$tmp/qemu/large.vmdk
must qemu-img create -q -f vmdk -o subformat=twoGbMaxExtentSparse "$image" 5G
must qemu-io -f vmdk -c "write -P 1 2147483136 1024" -c "write -P 2 2100M 1M" -c "write -P 3 4294967000 5000" \
    -c "write -P 4 5368708608 512" "$image"
run_ok "a split disk is copied" blockmig copy -O qcow2 "$image" "$tmp/copies/large.qcow2"
same_content "$image" "$tmp/copies/large.qcow2" "and reads the same"
is "$(blockmig info --json "$image" | jq -r '[.chain[0].data_files[] | select(.opened) | .name] | join(" ")')" \
    "large-s001.vmdk large-s002.vmdk large-s003.vmdk" "info names its files"

# ---- chains of QEMU, linked by content id -----------------------------------------------------------

base=$tmp/qemu/base.vmdk
make_pattern_image "$base" vmdk 12M 30
for i in 1 2 3; do
    must qemu-img create -q -f vmdk -b "$(basename "$base")" -F vmdk -o zeroed_grain=on "$tmp/qemu/d$i.vmdk"
    write_patterns "$tmp/qemu/d$i.vmdk" vmdk $((12 << 20)) 12
    base=$tmp/qemu/d$i.vmdk
done
run_ok "a chain is flattened" blockmig copy -O raw "$tmp/qemu/d3.vmdk" "$tmp/copies/chain"
is "$(sha256sum <"$tmp/copies/chain" | cut -d' ' -f1)" "$(content_hash "$tmp/qemu/d3.vmdk" vmdk)" "and reads the same"
must qemu-io -f vmdk -c "write -P 9 0 512" "$tmp/qemu/d1.vmdk"
fails_with 3 "a parent that was written to is not the parent any more" \
    blockmig copy -O raw "$tmp/qemu/d3.vmdk" "$tmp/copies/broken"
like "$err" "d2.vmdk.*parentCID is [0-9a-f]{8}, the CID of the parent [0-9a-f]{8}" "the message names both ids"

# ---- names in the encoding of the host that wrote them ----------------------------------------------

mkdir "$tmp/names"
head -c 65536 "$tmp/want.raw" >"$tmp/names/data"

# finds ENCODING NAME: an extent whose name, in UTF-8, is NAME.
finds()
{
    must cp "$tmp/names/data" "$tmp/names/$2"
    printf 'version=1\nencoding="%s"\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 128 FLAT "%s" 0\n' \
        "$1" "$(iconv -t "${1/#windows-/CP}" <<<"$2")" >"$tmp/names/disk.vmdk"
    run_ok "an extent is found by its name in $1" blockmig verify -q -F raw "$tmp/names/disk.vmdk" "$tmp/names/data"
}
finds windows-1252 größe.vmdk
finds GBK 磁盘.vmdk
finds windows-949 디스크.vmdk

# ---- VirtualBox -------------------------------------------------------------------------------------

need_tool tar xz
mkdir "$tmp/vbox"
must tar -C "$tmp/vbox" -xJf "$srcdir/tests/images/virtualbox-vmdk-qcow.tar.xz"
base=39cfbe214cf111da19bd93ddc134f84a8dd999d09e1ab4c5cdc35d0391981f30
d1=7a2a9c6194c015eba8f50daa4d674352a0b74ff5b4f5ef221585151e774398fc
d2=5810517235588be1ac9e0b8fa3e8435caa8d0f38aeeddbb64ab08a36c146e75b

# reads_as SHA-256 IMAGE [--parent FILE]...
reads_as()
{
    local wanted=$1 image=$tmp/vbox/vbox-vmdk-$2.vmdk name=$2
    shift 2
    run_ok "VirtualBox's $name is copied" blockmig copy --force -O raw "$@" "$image" "$tmp/copies/out"
    is "$(sha256sum <"$tmp/copies/out" | cut -d' ' -f1)" "$wanted" "$name: the content is right"
}
reads_as $base sparse
reads_as $base stream
reads_as $d1 sparse-d1 --parent "$tmp/vbox/vbox-vmdk-sparse.vmdk"
reads_as $d2 sparse-d2 --parent "$tmp/vbox/vbox-vmdk-sparse-d1.vmdk" --parent "$tmp/vbox/vbox-vmdk-sparse.vmdk"
fails_with 3 "a delta of VirtualBox without its parent" blockmig copy "$tmp/vbox/vbox-vmdk-sparse-d1.vmdk" "$tmp/copies/no.vmdk"
like "$err" "does not name its parent; give it with --parent" "is never read as a disk of its own"
fails_with 3 "the base is not the parent of the second delta" \
    blockmig copy --parent "$tmp/vbox/vbox-vmdk-sparse.vmdk" "$tmp/vbox/vbox-vmdk-sparse-d2.vmdk" "$tmp/copies/no.vmdk"
like "$err" "ddb.uuid.parent is 4f3f4bcb.*ddb.uuid.image is 7fdbbc4d" "the message names both"
# ---- damaged ----------------------------------------------------------------------------------------

# A checksum stands behind what is packed: what unpacks to the right length may be wrong all the same.
random_file "$tmp/noise.raw" 1M 5
must qemu-img convert -f raw -O vmdk -o subformat=streamOptimized "$tmp/noise.raw" "$tmp/damaged.vmdk"
printf XXXXXXXX | dd of="$tmp/damaged.vmdk" bs=1 seek=$((65536 + 512 + 2000)) conv=notrunc status=none
fails_with 1 "a packed grain that is damaged ends the copy" blockmig copy -q -O raw "$tmp/damaged.vmdk" "$tmp/damaged.raw"
like "$err" "damaged.vmdk: .*packed grain at offset 0 is damaged" "with its place"
fails_with 6 "--salvage goes on without it" blockmig copy -q --restart --salvage -O raw "$tmp/damaged.vmdk" "$tmp/damaged.raw"
check "and has all others" cmp --ignore-initial=65536 "$tmp/damaged.raw" "$tmp/noise.raw"
done_testing
