#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Disks are copied to and from units of an iSCSI target: what QEMU reads there afterwards is the source, old data
# shows nowhere, thin stays thin.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_tool qemu-img qemu-io jq python3
use_seed
start_tgtd
make_target

mixed_file "$tmp/source.raw" 40M "$seed"
must qemu-img convert -f raw -O qcow2 "$tmp/source.raw" "$tmp/source.qcow2"

# A file, and back.
truncate -s 40M "$tmp/unit1"
add_lun 1 "$tmp/unit1"
uri=$REPLY
run_ok "a qcow2 image becomes a unit" blockmig copy --json -O raw "$tmp/source.qcow2" "$uri"
is "$(jq -r '.disks[0].target' <<<"$out")" "$uri" "the report names the unit"
same_content "$tmp/source.raw" "$uri" "QEMU reads the source from the unit" -f raw -F raw
run_ok "the unit becomes an image" blockmig copy -f raw -O qcow2 "$uri" "$tmp/back.qcow2"
same_content "$tmp/source.raw" "$tmp/back.qcow2" "and that is the source, too"
run_ok "verify compares a file with a unit" blockmig verify -f raw -F raw "$tmp/source.raw" "$uri"
must qemu-io -f raw -c 'write -P 77 20M 512' "$uri"
fails_with 1 "and finds a difference" blockmig verify -f raw -F raw "$tmp/source.raw" "$uri"
run_ok "info knows units" blockmig info --json -f raw "$uri"
is "$(jq -r .virtual_size <<<"$out")" $((40 << 20)) "info says its size"
run_ok "plan says what would be done" blockmig plan copy -f raw "$uri" "$tmp/planned.raw"
check "and does nothing" test ! -e "$tmp/planned.raw"

# An image inside a unit.
truncate -s 64M "$tmp/unit2"
add_lun 2 "$tmp/unit2"
run_ok "a unit may hold a qcow2 image" blockmig copy -O qcow2 "$tmp/source.qcow2" "$REPLY"
same_content "$tmp/source.raw" "$REPLY" "which QEMU reads" -f raw -F qcow2
run_ok "and which is copied as any image" blockmig copy -f qcow2 -O raw "$REPLY" "$tmp/inside.raw"
same_content "$tmp/source.raw" "$tmp/inside.raw" "to the same content" -f raw -F raw

# Old data in the unit, without and with unmapping, for both sizes of blocks.
number=3
for thin in no yes; do
    for block in 512 4096; do
        random_file "$tmp/unit$number" 48M "$number"
        add_lun $number "$tmp/unit$number" --blocksize "$block"
        [ $thin = no ] || make_thin $number
        run_ok "a used unit with blocks of $block bytes is written (thin: $thin)" \
            blockmig copy -f raw "$tmp/source.raw" "$REPLY"
        like "$err" 'the rest is zeros' "that it is larger is said"
        # QEMU's raw driver takes what is behind the shorter one for zeros, and compares.
        same_content "$tmp/source.raw" "$REPLY" "no old byte is left" -f raw -F raw
        number=$((number + 1))
    done
done

# Thin stays thin: there and back.
truncate -s 256M "$tmp/unit8"
add_lun 8 "$tmp/unit8"
make_thin 8
run_ok "a thin unit is written" blockmig copy -f raw "$tmp/source.raw" "$REPLY"
data=$(allocated "$tmp/source.raw")
check "it takes no more than the data" test "$(allocated "$tmp/unit8")" -le $((data + (1 << 20)))
run_ok "it is read" blockmig copy -f raw "$REPLY" "$tmp/thin.raw"
check "the copy is thin, too" test "$(allocated "$tmp/thin.raw")" -le $((data + (1 << 20)))
run_ok "map tells what is unmapped" blockmig map --json -f raw "$REPLY"
check "from the unit" jq -e 'any(.extents[]; .status == "zero")' <<<"$out"

# Sizes.
truncate -s 39M "$tmp/unit9"
add_lun 9 "$tmp/unit9"
fails_with 3 "a unit that is too small is refused" blockmig copy -f raw "$tmp/source.raw" "$REPLY"
like "$err" 'too small' "with the reason"
mixed_file "$tmp/odd.raw" 1M 1
must truncate -s 1000100 "$tmp/odd.raw"
truncate -s 8M "$tmp/unit10"
add_lun 10 "$tmp/unit10" --blocksize 4096
run_ok "sizes that are no multiple of a block are written" blockmig copy -f raw "$tmp/odd.raw" "$REPLY"
check "to the last byte" cmp -n 1000100 "$tmp/odd.raw" "$tmp/unit10"

# What is not there.
fails_with 3 "a unit that is not there is refused" blockmig info "iscsi://$portal/$iqn/77"
fails_with 3 "as is a target that is not there" blockmig info "iscsi://$portal/$iqn.not/1"
free_port
fails_with 8 "nobody at the port: unreachable" blockmig info "iscsi://127.0.0.1:$REPLY/$iqn/1"
fails_with 3 "the same unit is no target" blockmig copy -f raw "$uri" "$uri"
for bad in "iscsi://$portal" "iscsi://$portal/$iqn" "iscsi://$portal/$iqn/x" "iscsi:///$iqn/1" "iscsi://$portal/a b/1"; do
    fails_with 2 "\"$bad\" is a usage error" blockmig info "$bad"
done
done_testing
