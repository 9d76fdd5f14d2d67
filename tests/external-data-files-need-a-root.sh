#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A qcow2 image with an external data file is read as QEMU reads it, but only if --allow-root covers that file.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io python3 jq nbdcopy qemu-nbd
use_seed

mkdir "$tmp/store" "$tmp/data" "$tmp/copies" "$tmp/kept"
store=$tmp/store

# data_image NAME DATA-NAME [-o OPTIONS]: the qcow2 image NAME in the store, DATA-NAME as it stands in it.
data_image()
{
    must qemu-img create -q -f qcow2 -o "data_file=$2${3:+,$3}" "$store/$1" 9M
    write_patterns "$store/$1" qcow2 $((9 << 20)) 40
}

# ---- what QEMU made reads the same ------------------------------------------------------------------

cd "$store" || exit 99
data_image raw.qcow2 raw.data data_file_raw=on
data_image plain.qcow2 "$tmp/data/plain.data"
data_image small.qcow2 small.data cluster_size=4k
data_image subclusters.qcow2 subclusters.data extended_l2=on,cluster_size=16k
must qemu-img create -q -f qcow2 -o data_file=empty.data "$store/empty.qcow2" 9M
make_pattern_image "$store/base.qcow2" qcow2 10M 20
must qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 -o data_file=overlay.data "$store/overlay.qcow2" 9M
write_patterns "$store/overlay.qcow2" qcow2 $((9 << 20)) 20
must qemu-img create -q -f qcow2 -b plain.qcow2 -F qcow2 "$store/child.qcow2"
write_patterns "$store/child.qcow2" qcow2 $((9 << 20)) 5

for name in raw plain small subclusters empty overlay child; do
    run_ok "$name: is copied" \
        blockmig copy --allow-root "$tmp" "$store/$name.qcow2" "$tmp/copies/$name.qcow2"
    [ "$name" = child ] || like "$out$err" "lies in an external file: a copy holds it itself" "$name: it is announced"
    must qemu-img convert -f qcow2 -O raw "$store/$name.qcow2" "$tmp/want.raw"
    same_content "$tmp/want.raw" "$tmp/copies/$name.qcow2" "$name: the content is that of qemu-img convert" \
        -f raw -F qcow2
    is "$(qemu-img info --output=json "$tmp/copies/$name.qcow2" | jq -r '."format-specific".data."data-file"')" \
        null "$name: the copy stands alone"
    image_clean "$tmp/copies/$name.qcow2" "$name: the copy is clean"
    run_ok "$name: verify" blockmig verify --allow-root "$tmp" "$store/$name.qcow2" "$tmp/copies/$name.qcow2"
    run_ok "$name: map" blockmig map --json --allow-root "$tmp" "$store/$name.qcow2"
done
cd / || exit 99
is "$(blockmig map --json --allow-root "$tmp" "$store/plain.qcow2" |
    jq '[.extents[] | select(.status == "data") | .offset != .host_offset] | any')" false \
    "guest offsets are offsets of the data file"
# QEMU looks for relative data files in its working directory.
cd "$store" || exit 99
run_ok "a chain is kept layer by layer" blockmig copy --chain=keep --allow-root "$tmp" "$store/child.qcow2" \
    "$tmp/kept/child.qcow2"
same_content "$store/child.qcow2" "$tmp/kept/child.qcow2" "and reads the same"
cd / || exit 99

# ---- info -------------------------------------------------------------------------------------------

run_ok "info, allowed" blockmig info --json --allow-root "$tmp/data" "$store/plain.qcow2"
is "$(jq -r '.chain[0].data_files[0] | "\(.name) \(.opened) \(.file_size)"' <<<"$out")" \
    "$tmp/data/plain.data true $(stat -c %s "$tmp/data/plain.data")" "info shows the data file"
is "$(jq -r '.chain[0].features.data_file_raw' <<<"$out")" off "and whether it is raw"
fails_with 3 "info, not allowed" blockmig info --json "$store/raw.qcow2"
is "$(jq -r '.chain[0].data_files[0] | "\(.name) \(.opened)"' <<<"$out")" "raw.data false" \
    "info shows the name all the same"

# ---- only what was allowed is opened ----------------------------------------------------------------

fails_with 3 "beside the image is not enough" blockmig copy "$store/raw.qcow2" "$tmp/no.qcow2"
like "$err" 'data file "raw.data" of .*raw.qcow2: .*--allow-root' "the message names the file and the option"
fails_with 3 "another root does not count" \
    blockmig copy --allow-root "$store" "$store/plain.qcow2" "$tmp/no.qcow2"
fails_with 3 "verify asks the same" blockmig verify "$store/raw.qcow2" "$tmp/copies/raw.qcow2"
fails_with 3 "map asks the same" blockmig map "$store/raw.qcow2"
fails_with 3 "a data file in the middle of a chain needs a root as well" \
    blockmig copy "$store/child.qcow2" "$tmp/no.qcow2"
like "$err" 'external data file .*plain.qcow2' "and the message names the layer"

# rename_data NAME: raw.qcow2 with another name for its data file, as bad.qcow2.
rename_data()
{
    must python3 -c '
import struct, sys
image, name = bytearray(open(sys.argv[1], "rb").read()), sys.argv[3].encode().decode("unicode_escape").encode()
at = struct.unpack_from(">I", image, 100)[0]
extension = struct.pack(">II", 0x44415441, len(name)) + name + bytes(-len(name) % 8)
image[at:4096] = (extension + bytes(4096))[:4096 - at]
open(sys.argv[2], "wb").write(image)' "$store/raw.qcow2" "$store/bad.qcow2" "$1"
}

# refuses WHAT NAME REASON: everything is allowed, and it is refused all the same, without waiting.
refuses()
{
    rename_data "$2"
    fails_with 3 "$1: refused" timeout 20 "$blockmig" copy --allow-root / "$store/bad.qcow2" "$tmp/no.qcow2"
    like "$err" "$3" "$1: the message says why"
    check "$1: nothing is written" test ! -e "$tmp/no.qcow2"
}

mkfifo "$store/fifo"
ln -s bad.qcow2 "$store/link"
head -c 1M "$store/raw.data" >"$store/short.data"
refuses "json:" 'json:{"driver":"file","filename":"raw.data"}' "json: description"
refuses "JSON:" 'JSON:{"driver":"file","filename":"raw.data"}' "json: description"
refuses "a protocol" 'nbd://localhost/x' "protocol"
refuses "file:" 'file:raw.data' "protocol"
refuses "a control character" 'raw\n.data' "control character"
refuses "a NUL byte" 'raw\0.data' "NUL"
refuses "no name" '' "does not name"
refuses "a missing file" missing.data "No such file"
refuses "a FIFO" fifo "neither a regular file"
refuses "a directory" . "is a directory"
refuses "a character device" /dev/zero "neither a regular file"
refuses "the image itself" bad.qcow2 "loop"
refuses "the image itself by another name" link "loop"
refuses "a data file that is too short" short.data "1048576 bytes, 9437184 are needed"
rename_data "$(printf 'x%.0s' {1..1024})"
fails_with 3 "a name of 1024 bytes" blockmig info "$store/bad.qcow2"
loop_device "$store/raw.data" && rename_data "$REPLY" &&
    fails_with 3 "a block device" blockmig copy --allow-root / "$store/bad.qcow2" "$tmp/no.qcow2"

rename_data /etc/hostname
fails_with 3 "a file of the system" blockmig copy --allow-root "$tmp" "$store/bad.qcow2" "$tmp/no.qcow2"
ln -s /etc/hostname "$store/hostname"
rename_data hostname
fails_with 3 "a link to one" blockmig copy --allow-root "$tmp" "$store/bad.qcow2" "$tmp/no.qcow2"

# Without a plain copy of the whole disk in it, the file may end where its last cluster does.
cp "$store/plain.qcow2" "$store/cut.qcow2"
cp --sparse=always "$tmp/data/plain.data" "$tmp/data/whole.data"
must truncate -s 64K "$tmp/data/plain.data"
fails_with 3 "allocated clusters behind the end of the data file" \
    blockmig copy --allow-root "$tmp" "$store/cut.qcow2" "$tmp/no.qcow2"
like "$err" "the data file ends inside the data of guest offset" "the message says where"
mv "$tmp/data/whole.data" "$tmp/data/plain.data"

# patch NAME OFFSET HEX: a changed copy, bad.qcow2.
patch()
{
    cp "$store/$1" "$store/bad.qcow2"
    printf '%b' "$(sed 's/../\\x&/g' <<<"$3")" |
        dd of="$store/bad.qcow2" bs=1 seek="$2" conv=notrunc status=none
}
patch raw.qcow2 72 0000000000000000
fails_with 3 "raw data flag without a data file" blockmig info "$store/bad.qcow2"
like "$err" "autoclear_features 0x2" "names the field"
l2=$(python3 -c '
import struct, sys
image = open(sys.argv[1], "rb").read()
print(struct.unpack_from(">Q", image, struct.unpack_from(">Q", image, 40)[0])[0] & 0xfffffffffffe00)' "$store/raw.qcow2")
patch raw.qcow2 "$l2" 8000000000010000
fails_with 1 "another offset in the data file" blockmig map --allow-root "$tmp" "$store/bad.qcow2"
like "$err" "must point to the same offset" "is named"
patch raw.qcow2 "$l2" 4000000000010000
fails_with 1 "compressed clusters" blockmig map --allow-root "$tmp" "$store/bad.qcow2"
like "$err" "is compressed, but the data lies in an external file" "are named"

# ---- locks ------------------------------------------------------------------------------------------

running_machine "$store/raw.data" raw
fails_with 3 "a data file that a machine writes to" \
    blockmig copy --allow-root "$tmp" "$store/raw.qcow2" "$tmp/no.qcow2"
like "$err" "raw.data" "is named"
done_testing
