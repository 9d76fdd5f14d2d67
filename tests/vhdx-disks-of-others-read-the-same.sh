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
for options in subformat=dynamic subformat=dynamic,block_size=1M,block_state_zero=off subformat=dynamic,block_size=64M \
    subformat=fixed,log_size=2M; do
    make_pattern_image theirs.vhdx vhdx 20M 30 -o "$options"
    must qemu-img convert -f vhdx -O raw theirs.vhdx theirs.raw
    run_ok "QEMU's $options" blockmig verify -q --strict -F raw theirs.vhdx theirs.raw
    run_ok "is copied" blockmig copy -q --force -O raw theirs.vhdx back.raw
    check "to the byte" cmp theirs.raw back.raw
    rm theirs.vhdx
done
done_testing
