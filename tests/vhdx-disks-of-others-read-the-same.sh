#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# VHDX disks that other programs wrote read as they read them; a parent is found by name and known by identity.
# The sums are of what two independent programs saw: tests/images/README.
. "${srcdir:-.}/tests/lib.sh"
need_tool tar xz jq qemu-img qemu-io

must tar -C "$tmp" -xJf "$srcdir/tests/images/vhdx.tar.xz"
base=39cfbe214cf111da19bd93ddc134f84a8dd999d09e1ab4c5cdc35d0391981f30
d1=7a2a9c6194c015eba8f50daa4d674352a0b74ff5b4f5ef221585151e774398fc
cd "$tmp" || exit

# reads_as SUM WHAT COPY-ARGUMENTS...
reads_as()
{
    local sum=$1 what=$2
    shift 2
    rm -f out.raw
    run blockmig copy -q -O raw "$@" out.raw
    [ "$status" -eq 0 ] || diag "$err"
    is "$(sha256sum <out.raw | cut -d' ' -f1)" "$sum" "$what"
}

reads_as "$base" "a dynamic VHDX of DiscUtils" du-vhdx-dyn.vhdx
reads_as "$d1" "a differencing VHDX with its parent" hm-vhdx-d1.avhdx
mkdir away
mv du-vhdx-dyn.vhdx away
fails_with 3 "without its parent it is refused" blockmig copy -O raw hm-vhdx-d1.avhdx x.raw
like "$err" '"./du-vhdx-dyn.vhdx" \(.*No such file' "with the name that was tried"
reads_as "$d1" "it can be given" --parent away/du-vhdx-dyn.vhdx hm-vhdx-d1.avhdx
reads_as "$d1" "or be allowed" --parent vhdx:away/du-vhdx-dyn.vhdx hm-vhdx-d1.avhdx
cp away/du-vhdx-dyn.vhdx .
must qemu-io -f vhdx -c "write -P 1 0 512" du-vhdx-dyn.vhdx
fails_with 3 "a parent that was changed is not taken" blockmig copy -O raw hm-vhdx-d1.avhdx x.raw
like "$err" "has DataWriteGuid \{31e08e75-f687-4325-9038-c4ba5a1d2a54\}, but .* has \{[0-9a-f-]{36}\}" "both identities are told"
check "nothing was written" test ! -e x.raw

# ---- QEMU -------------------------------------------------------------------------------------------

use_seed
reads_what_qemu_writes vhdx vhdx subformat=dynamic subformat=dynamic,block_size=1M,block_state_zero=off \
    subformat=dynamic,block_size=64M subformat=fixed,log_size=2M

# ---- ours, of any size ------------------------------------------------------------------------------

for size in 512 $(((5 << 20) + 512)) $(((6 << 20) + 1000)); do
    mixed_file odd.raw "$size" "$RANDOM"
    run_ok "a disk of $size bytes" blockmig copy --force -O vhdx odd.raw odd.vhdx
    told=$err
    is "$(qemu-img info --output=json odd.vhdx | jq '."virtual-size"')" $(((size + 511) / 512 * 512)) "has whole sectors"
    same_content odd.raw odd.vhdx "and for QEMU the same content" -f raw -F vhdx
done
like "$told" "odd.vhdx: the disk has 6292480 bytes where the source has 6292456: the rest is zeros" "what is added is told"
run_ok "with larger sectors" blockmig copy --force -O vhdx -o logical_sector_size=4096 odd.raw odd.vhdx
like "$err" "the disk has 6295552 bytes" "to the next of them"
run_ok "it is the same, too" blockmig verify -q odd.raw odd.vhdx
printf x >>odd.raw
run_ok "of a fixed disk, too" blockmig copy -q -O vhdx -o subformat=fixed,logical_sector_size=4096 odd.raw odd-fixed.vhdx
run_ok "it is the same, too" blockmig verify -q odd.raw odd-fixed.vhdx

# ---- a log that QEMU left ---------------------------------------------------------------------------

# The first sector of the BAT cannot be written, so the change stays in the log. It must be a change to
# the BAT, so what is written lies where no pattern can have been.
must qemu-img create -q -f vhdx -o block_size=1M theirs.vhdx 24M
write_patterns theirs.vhdx vhdx $((20 << 20)) 10
run qemu-io -c "write -P 200 21M 3M" 'json:{"driver": "vhdx", "file": {"driver": "blkdebug", "image": {"driver": "file",
    "filename": "theirs.vhdx"}, "inject-error": [{"event": "none", "iotype": "write", "errno": 5, "once": false, "sector": 4096}]}}'
before=$(sha256sum <theirs.vhdx)
run blockmig info --json theirs.vhdx
is "$(jq -r '.chain[0].features.dirty' <<<"$out")" yes "QEMU left a log that is in use"
like "$(jq -r '.chain[0].notices[]' <<<"$out")" "log holds changes" "which is told"
run_ok "its content is copied" blockmig copy -q --force -O raw theirs.vhdx back.raw
is "$(sha256sum <theirs.vhdx)" "$before" "it is not written to"
cp theirs.vhdx replayed.vhdx
run qemu-img check -q -f vhdx -r all replayed.vhdx
same_content replayed.vhdx back.raw "QEMU, having replayed it, sees the same" -f vhdx -F raw
run_ok "it may be written to" "$builddir/tests/helpers/image-driver" random vhdx theirs.vhdx model.raw 1 30
same_content theirs.vhdx model.raw "QEMU sees what was written" -f vhdx -F raw

# ---- in turns ---------------------------------------------------------------------------------------

pick 3 100
rounds=$REPLY failures=0
for ((i = 0; i < rounds; i++)); do
    size=$((RANDOM % 20 * 1048576 + (RANDOM % 2000 + 1) * 512)) block=$((1 << RANDOM % 4))M
    rm -f turns.vhdx
    if [ $((RANDOM % 2)) -eq 0 ]; then
        must qemu-img create -q -f vhdx -o block_size=$block turns.vhdx "$size"
    else
        must "$builddir/tests/helpers/image-driver" create vhdx turns.vhdx "$size" block_size=$block
    fi
    for ((turn = 0; turn < 3; turn++)); do
        write_patterns turns.vhdx vhdx "$size" 8
        run "$builddir/tests/helpers/image-driver" random vhdx turns.vhdx model.raw "$RANDOM" 15
        [ "$status" -eq 0 ] || failures=$((failures + 1))
        run qemu-img compare -f vhdx -F raw turns.vhdx model.raw
        [ "$status" -eq 0 ] || failures=$((failures + 1))
        run qemu-img check -q -f vhdx turns.vhdx
        [ "$status" -eq 0 ] || failures=$((failures + 1))
    done
done
is "$failures" 0 "QEMU and we write in turns, $rounds disks"
done_testing
