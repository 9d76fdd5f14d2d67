#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# blockmig create: empty images and children in every format that can be written, and what it refuses.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq
cd "$tmp" || exit

for format in raw qcow2 vhd vhdx vdi vmdk; do
    run_ok "$format" blockmig create --json -O "$format" "new.$format" 20M
    is "$(jq -r '.format, .virtual_size' <<<"$out" | xargs)" "$format 20971520" "the report says so"
    run blockmig info --json "new.$format"
    is "$(jq -r '.chain[0] | .format, .virtual_size' <<<"$out" | xargs)" "$format 20971520" "info sees the same"
    fails_with 3 "$format: a file that is there is not overwritten" blockmig create -O "$format" "new.$format" 20M
done
truncate -s 20M zeros.raw
for format in qcow2 vhdx vdi vmdk; do
    same_content "new.$format" zeros.raw "QEMU finds $format empty" -f "$format" -F raw
done
same_content new.vhd zeros.raw "QEMU finds vhd empty" -f vpc -F raw

for format in qcow2 vhd vhdx vdi vmdk; do
    parents=(--parent "new.$format")
    run_ok "a child of $format, as large as its parent" blockmig create -O "$format" "${parents[@]}" "child.$format"
    [ "$format" = vdi ] || parents=()
    run_ok "shows what its parent shows" blockmig verify -q --strict "${parents[@]}" -F raw "child.$format" zeros.raw
done
mkdir deeper
run_ok "in another directory" blockmig create -O qcow2 --parent child.qcow2 deeper/child.qcow2
is "$(qemu-img info --output=json deeper/child.qcow2 | jq -r '."backing-filename"')" "$(pwd -P)/child.qcow2" \
    "the name of the parent is absolute"
for format in qcow2 vhd vhdx vmdk; do
    must blockmig create -q -O "$format" "12:30.$format" 1M
    must blockmig create -q -O "$format" --parent "12:30.$format" "over 12:30.$format"
    run_ok "$format: a colon makes no protocol of the parent" blockmig info -q "over 12:30.$format"
done
same_content "./over 12:30.qcow2" "./over 12:30.vmdk" "nor for QEMU" -f qcow2 -F vmdk
run_ok "nor when a chain is copied" blockmig copy -q --chain=keep "over 12:30.qcow2" deeper/
run_ok "layer by layer" blockmig info -q "deeper/over 12:30.qcow2"
fails_with 3 "a VMDK whose files could not be opened by their names" \
    blockmig create -q -O vmdk -o subformat=twoGbMaxExtentSparse 12:30 1M
like "$err" 'names a protocol, not a file' "is refused"
must blockmig create -q -O vmdk 'back\slash' 1M
fails_with 3 "so is a VMDK over one with a backslash" blockmig create -q -O vmdk --parent 'back\slash' x
run_ok "a grandchild of VDI" blockmig create -O vdi --parent child.vdi --parent new.vdi grandchild.vdi
run_ok "knows its parent" blockmig verify -q --parent child.vdi --parent new.vdi grandchild.vdi zeros.raw
run_ok "a qcow2 over a VHD" blockmig create -q -O qcow2 --parent new.vhd over-vhd.qcow2
same_content over-vhd.qcow2 zeros.raw "which QEMU finds" -f qcow2 -F raw
run_ok "and we" blockmig verify -q --strict -F raw over-vhd.qcow2 zeros.raw
fails_with 3 "a qcow2 over a differencing VHD" blockmig create -q -O qcow2 --parent child.vhd x
like "$err" "QEMU does not see what lies below" "would be misread"
run_ok "a qcow2 over a VMDK that is a delta" blockmig create -q -O qcow2 --parent child.vmdk over-vmdk.qcow2
same_content over-vmdk.qcow2 zeros.raw "is read by QEMU down to its base" -f qcow2 -F raw
fails_with 3 "QCOW of version 1 is only read" blockmig create -O qcow x 1M
run_ok "options" blockmig create -q -O vhd -o subformat=fixed fixed.vhd 1M
is "$(stat -c %s fixed.vhd)" $(((1 << 20) + 512)) "are followed"

for format in qcow2 vhd vhdx vdi vmdk; do
    run_ok "$format: a size that is none of whole sectors" blockmig create --json -O "$format" "odd.$format" 1000001
    is "$(jq .virtual_size <<<"$out")" 1000448 "is rounded up, which is told"
done

run blockmig create -O qcow2 -o help
is "$status$err" 0 "-o help needs no file"
is "$out" "$(blockmig copy -O qcow2 -o help)" "and lists the options of the format, as copy does"
is "$(blockmig create -o help)" "$(blockmig copy -o help)" "or those of all"
fails_with 2 "but not of one that is unknown" blockmig create -O paper -o help

fails_with 2 "no format" blockmig create x 1M
fails_with 2 "no size" blockmig create -O raw x
fails_with 2 "a size that is none" blockmig create -O raw x many
fails_with 2 "an unknown option" blockmig create -O vhd -o cluster_size=64k x 1M
fails_with 2 "a wrong value" blockmig create -O vhd -o block_size=1000 x 1M
like "$err" "block_size=1000: must be a power of two" "is told"
fails_with 2 "a raw disk that no file can be" blockmig create -O raw x 8E
like "$err" "9223372036854775808 bytes is too large" "is told so"
fails_with 3 "a VHD that is too large" blockmig create -O vhd x 3T
fails_with 3 "a parent of another format" blockmig create -O vhd --parent new.qcow2 x
fails_with 3 "a parent that looks raw" blockmig create -O qcow2 --parent zeros.raw x
run_ok "is taken if it is called raw" blockmig create -q -O qcow2 --parent raw:zeros.raw over-raw.qcow2
fails_with 3 "another size than the parent's" blockmig create -O vdi --parent new.vdi x 21M
fails_with 1 "raw has no parents" blockmig create -O raw --parent new.qcow2 x
fails_with 2 "a parent too many" blockmig create -O vhd --parent new.vhd --parent new.vdi x
check "nothing is left of what failed" test ! -e x
for format in vhd vhdx vdi vmdk; do
    fails_with 3 "$format: a disk without a sector is refused" blockmig create -O "$format" "$tmp/nothing" 0
    check "$format: and nothing is made" test ! -e "$tmp/nothing"
done

# stopped SIGNAL FILE OPTIONS...: create gets the signal once FILE is there.
stopped()
{
    local signal=$1 file=$2 pid
    shift 2
    # A background process of a script ignores SIGINT unless it is told otherwise.
    env --default-signal=INT "$blockmig" create --json "$@" >"$tmp/out" 2>"$tmp/messages" 3>&- </dev/null &
    pid=$!
    wait_for 10 test -s "$file"
    kill -s "$signal" "$pid"
    wait "$pid"
    is $? 4 "SIG$signal: exit status 4"
    is "$(jq -r .result "$tmp/out")" rolled-back "the result is in the report"
    is "$(cat "$tmp/messages")" "blockmig: $(jq -r .error "$tmp/out")" "and the message"
    is "$(find . -name 'stopped*')" '' "nothing is left"
}

stopped TERM stopped.qcow2 -O qcow2 -o preallocation=full stopped.qcow2 6G
stopped INT stopped.qcow2 -O qcow2 -o preallocation=full stopped.qcow2 6G
stopped HUP stopped-s003.vmdk -O vmdk -o subformat=twoGbMaxExtentSparse stopped.vmdk 7T
done_testing
