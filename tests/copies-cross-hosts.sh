#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An agent's datastore is a place to copy to and from, for every format, and no name is taken before the proof.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
use_seed

small_filesystem ext4 40M
more_datastores="[datastore small]
directory=$REPLY"
small=$REPLY
local_agent
must qemu-img create -q -f qcow2 "$tmp/disk.qcow2" 64M
write_patterns "$tmp/disk.qcow2" qcow2 $((64 << 20)) 20
must qemu-img create -q -f qcow2 -b disk.qcow2 -F qcow2 "$tmp/top.qcow2"
write_patterns "$tmp/top.qcow2" qcow2 $((64 << 20)) 8

for format in raw qcow2 vhdx vmdk vpc vdi; do
    run_ok "$format: there" blockmig copy --json -O "${format/vpc/vhd}" "$tmp/disk.qcow2" "$store/disk.$format"
    is "$(jq -r '.disks[0].verified' <<<"$out")" full "$format: proved"
    is "$(jq '.disks[0].bytes_wire < 1.1 * .disks[0].bytes_written + 3000000' <<<"$out")" true "$format: what is written is sent once"
    same_content "$tmp/disk.qcow2" "$tmp/store/disk.$format" "$format: the same" -f qcow2 -F $format
    run_ok "$format: and back" blockmig copy -q -O raw "$store/disk.$format" "$tmp/back.$format"
    same_content "$tmp/disk.qcow2" "$tmp/back.$format" "$format: as it was" -f qcow2 -F raw
    run_ok "$format: verified in place" blockmig verify -q "$tmp/disk.qcow2" "$store/disk.$format"
done
is "$(find "$tmp/store" -name "*part")" "" "no part is left"

must mkdir "$tmp/store/chain"
run_ok "a directory takes the same name" blockmig copy -q --chain=keep "$tmp/top.qcow2" "$store/chain"
is "$(qemu-img info --output=json "$tmp/store/chain/top.qcow2" | jq -r '."backing-filename"')" disk.qcow2 "a chain is kept"
same_content "$tmp/top.qcow2" "$tmp/store/chain/top.qcow2" "with what it shows" -f qcow2 -F qcow2
run_ok "and read where it is" blockmig copy -q -O raw "$store/chain/top.qcow2" "$tmp/back.chain"
same_content "$tmp/top.qcow2" "$tmp/back.chain" "whole" -f qcow2 -F raw
for form in monolithicFlat twoGbMaxExtentFlat twoGbMaxExtentSparse; do
    run_ok "$form: several files" blockmig copy -q -O vmdk -o subformat=$form "$tmp/disk.qcow2" "$store/$form.vmdk"
    run_ok "$form: are one disk there" blockmig verify -q "$tmp/disk.qcow2" "$store/$form.vmdk"
    run_ok "$form: and back" blockmig copy -q -O raw "$store/$form.vmdk" "$tmp/back.$form"
    same_content "$tmp/disk.qcow2" "$tmp/back.$form" "$form: as it was" -f qcow2 -F raw
done
# What an image there names lies beside it, or is not opened.
must sed -i 's|"monolithicFlat-flat.vmdk"|"../store/monolithicFlat-flat.vmdk"|' "$tmp/store/monolithicFlat.vmdk"
fails_with 3 "a file that is named elsewhere" blockmig info "$store/monolithicFlat.vmdk"
like "$err" 'data file "../store/monolithicFlat-flat.vmdk" of .*lies in no directory of this host' "is not opened"
must qemu-img create -q -f qcow2 -u -b loop.qcow2 -F qcow2 "$tmp/store/loop.qcow2" 1M
fails_with 3 "a chain that is a loop" blockmig info "$store/loop.qcow2"
like "$err" "the chain is a loop: .*/store/loop.qcow2 -> .*/store/loop.qcow2" "is shown"
must cp "$tmp/store/disk.raw" "$tmp/store/other.raw"
must qemu-img create -q -f qcow2 -o data_file="$tmp/store/other.raw" "$tmp/store/external.qcow2" 64M
must qemu-img amend -f qcow2 -o data_file=other.raw "$tmp/store/external.qcow2"
fails_with 3 "a data file that could be any file" blockmig info "$store/external.qcow2"
like "$err" 'data file "other.raw" of .*only if --allow-root' "neither"
run_ok "a child may stand on what is beside it" blockmig create -O qcow2 --parent "$store/disk.qcow2" "$store/child.qcow2"
run_ok "and is read" blockmig verify -q "$tmp/disk.qcow2" "$store/child.qcow2"
run_ok "a copy, too" blockmig copy -q --chain=shallow "$store/child.qcow2" "$store/shallow.qcow2"
run_ok "and is read" blockmig verify -q "$tmp/disk.qcow2" "$store/shallow.qcow2"
for name in "$tmp/shallow.qcow2" "$store/chain/shallow.qcow2"; do
    fails_with 3 "but nothing elsewhere" blockmig copy -q --chain=shallow "$store/child.qcow2" "$name"
    like "$err" "cannot stand on .*:///store/disk.qcow2: what is on a server" "can name it"
    fails_with 3 "nor a child" blockmig create -O qcow2 --parent "$store/disk.qcow2" "$name"
done
fails_with 3 "an image there" blockmig commit "$store/child.qcow2"
like "$err" "only files of this host are merged" "is not merged"
run_ok "its map is read" blockmig map "$store/disk.vhdx"
run_ok "a plan" blockmig plan copy "$tmp/disk.qcow2" "$store/planned.qcow2"
like "$out" "by the agent" "says how it will be proved"
check "and changes nothing" test ! -e "$tmp/store/planned.qcow2.blockmig-part"

fails_with 3 "a name that is taken" blockmig copy -q "$tmp/top.qcow2" "$store/disk.vdi"
like "$err" "exists already" "is not taken again"
run_ok "unless that is wanted" blockmig copy -q --force -O qcow2 "$tmp/top.qcow2" "$store/disk.vdi"
same_content "$tmp/top.qcow2" "$tmp/store/disk.vdi" "then it is the new one" -f qcow2 -F qcow2
fails_with 3 "a read-only datastore" blockmig copy -q "$tmp/disk.qcow2" blockmig+unix:///frozen/disk.qcow2
like "$err" "read-only" "is not written"
fails_with 3 "a datastore that is not there" blockmig copy -q "$tmp/disk.qcow2" blockmig+unix:///none/disk.qcow2
start qemu-system-x86_64 -machine none -nodefaults -display none -S -blockdev "driver=qcow2,node-name=a,file.driver=file,file.filename=$tmp/store/disk.qcow2"
wait_for 10 eval "! qemu-io -c q '$tmp/store/disk.qcow2'"
fails_with 3 "what a machine there has open" blockmig copy -q --force "$tmp/top.qcow2" "$store/disk.qcow2"
like "$err" "lock" "is not replaced"

run_ok "an image is made there" blockmig create -O vhdx "$store/made.vhdx" 50M
same_content "$tmp/store/made.vhdx" "$tmp/store/made.vhdx" "which is one" -f vhdx -F vhdx
fails_with 3 "and not made again" blockmig create -O vhdx "$store/made.vhdx" 50M

start qemu-system-x86_64 -M pc -accel tcg -nodefaults -display none -qmp "unix:$tmp/qmp,server=on,wait=on" \
    -device virtio-blk,drive=d -blockdev "driver=qcow2,node-name=d,file.driver=file,file.filename=$tmp/top.qcow2"
wait_for 10 test -S "$tmp/qmp"
fails_with 3 "the disk of a running machine" blockmig move "qmp:$tmp/qmp" "$store/"
like "$err" "cannot run from an agent" "is not moved there"
stop_process "$REPLY"

# ---- compressed -------------------------------------------------------------------------------------

yes 'the quick brown fox' | head -c 32M >"$tmp/text.raw"
for how in off zstd zstd:9 auto; do
    run_ok "--compress=$how" blockmig copy --json --compress=$how "$tmp/text.raw" "$store/text-${how/:/}.raw"
    wire=$(jq '.disks[0].bytes_wire' <<<"$out")
    case $how in
        off) check "sends all" test "$wire" -ge $((32 << 20)) ;;
        zstd*) check "sends little" test "$wire" -lt $((4 << 20)) ;;
    esac
    check "and it arrives" cmp "$tmp/text.raw" "$tmp/store/text-${how/:/}.raw"
done
fails_with 2 "--compress=gzip" blockmig copy --compress=gzip "$tmp/text.raw" "$store/no.raw"

# ---- no room ----------------------------------------------------------------------------------------

fails_with 3 "what does not fit" blockmig copy -q "$tmp/disk.qcow2" -O raw -o preallocation=full blockmig+unix:///small/big.raw
like "$err" "blockmig\+unix:///small: no room" "is told before"
random_file "$tmp/noise.raw" 24M 7
(sleep 0.5; fallocate -l 20M "$small/more") &
run blockmig copy -q --bandwidth=10MiB/s "$tmp/noise.raw" blockmig+unix:///small/noise.raw
check "and a disk that is full in the end stops the copy ($status)" test "$status" -eq 3 -o "$status" -eq 5
check "without a name" test ! -e "$small/noise.raw"
rm -f "$small/more"
run_ok "with room it goes on" blockmig copy -q "$tmp/noise.raw" blockmig+unix:///small/noise.raw
check "and arrives" cmp "$tmp/noise.raw" "$small/noise.raw"
done_testing
