#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Disks that VirtualBox 7.2.22 wrote read as VirtualBox read them; parents are found by name and known by identity.
# The sums are of what two independent programs saw: tests/images/README.
. "${srcdir:-.}/tests/lib.sh"
need_tool tar xz jq

must tar -C "$tmp" -xJf "$srcdir/tests/images/virtualbox.tar.xz"
base=39cfbe214cf111da19bd93ddc134f84a8dd999d09e1ab4c5cdc35d0391981f30
d1=7a2a9c6194c015eba8f50daa4d674352a0b74ff5b4f5ef221585151e774398fc
d2=5810517235588be1ac9e0b8fa3e8435caa8d0f38aeeddbb64ab08a36c146e75b
fixed=14e7cefa5ce63831de1013bdb45a12e8c5a1177769f6d28715150043c7970a0c

# reads_as SUM WHAT COPY-ARGUMENTS...
reads_as()
{
    local sum=$1 what=$2
    shift 2
    rm -f "$tmp/out.raw"
    run blockmig copy -q -O raw "$@" "$tmp/out.raw"
    [ "$status" -eq 0 ] || diag "$err"
    is "$(sha256sum <"$tmp/out.raw" | cut -d' ' -f1)" "$sum" "$what"
}

# ---- VHD --------------------------------------------------------------------------------------------

cd "$tmp" || exit
reads_as "$fixed" "a fixed VHD" vbox-vhd-fixed.vhd
reads_as "$base" "a dynamic VHD, to its last sector" vbox-vhd-dyn.vhd
reads_as "$d1" "a differencing VHD with its parent" vbox-vhd-dyn-d1.vhd
reads_as "$d2" "one more above it" vbox-vhd-dyn-d2.vhd
run blockmig info --json vbox-vhd-dyn-d2.vhd
is "$(jq -r '[.chain[] | .features.subformat // .features.disk_type] | join(" ")' <<<"$out")" \
    "differencing differencing dynamic" "info names the kinds"
like "$(jq -r '.chain[0].notices[]' <<<"$out")" "QEMU shows 16746496 of them.*481/4/17" "and what QEMU would cut"

mv vbox-vhd-dyn.vhd VBox-VHD-dyn.VHD
reads_as "$d1" "a parent whose name has other letters on this host" vbox-vhd-dyn-d1.vhd
cp vbox-vhd-fixed.vhd vbox-vhd-dyn.vhd
fails_with 3 "what has the very name goes first" blockmig copy -O raw vbox-vhd-dyn-d1.vhd x.raw
mv VBox-VHD-dyn.VHD aside
mv vbox-vhd-dyn.vhd VBOX-vhd-dyn.vhd
fails_with 3 "other letters prove nothing" blockmig copy -O raw vbox-vhd-dyn-d1.vhd x.raw
like "$err" "made over the disk" "it has to be the parent"
rm VBOX-vhd-dyn.vhd
mv aside vbox-vhd-dyn.vhd
must blockmig create -q -O qcow2 base.qcow2 1M
must blockmig create -q -O qcow2 --parent base.qcow2 child.qcow2
mv base.qcow2 Base.qcow2
fails_with 3 "nothing is guessed for a child that could not tell" blockmig map child.qcow2

mkdir away
mv vbox-vhd-dyn.vhd away
fails_with 3 "without its parent a differencing VHD is refused" blockmig copy -O raw vbox-vhd-dyn-d1.vhd x.raw
like "$err" '"vbox-vhd-dyn.vhd" \(.*No such file.*"/w/gen/vbox-vhd-dyn.vhd" \(.*No such file.*--parent' "all names that were tried are told"
reads_as "$d1" "it can be given" --parent away/vbox-vhd-dyn.vhd vbox-vhd-dyn-d1.vhd
reads_as "$d2" "all of them can be given" --parent vbox-vhd-dyn-d1.vhd --parent away/vbox-vhd-dyn.vhd vbox-vhd-dyn-d2.vhd
fails_with 3 "another disk is not taken for the parent" \
    blockmig copy -O raw --parent away/vbox-vhd-dyn.vhd vbox-vhd-dyn-d2.vhd x.raw
like "$err" "made over the disk 2d9d7963-8483-8d47-bc4e-dbad77afc942, but .* is [0-9a-f-]{36}" "both identities are told"
cp vbox-vhd-fixed.vhd vbox-vhd-dyn.vhd
fails_with 3 "nor is one that has the parent's name" blockmig copy -O raw vbox-vhd-dyn-d1.vhd x.raw
like "$err" "made over the disk" "its identity is told"

# ---- VDI --------------------------------------------------------------------------------------------

reads_as "$base" "a dynamic VDI" vbox-vdi-dyn.vdi
reads_as "$d1" "a differencing VDI with its parent" --parent vbox-vdi-dyn.vdi vbox-vdi-dyn-d1.vdi
reads_as "$d2" "one more above it" --parent vbox-vdi-dyn-d1.vdi --parent vbox-vdi-dyn.vdi vbox-vdi-dyn-d2.vdi
fails_with 3 "without its parent a differencing VDI is refused" blockmig copy -O raw vbox-vdi-dyn-d1.vdi x.raw
like "$err" "does not name its parent; give it with --parent" "and what to do is told"
fails_with 3 "another disk is not taken for the parent" \
    blockmig copy -O raw --parent vbox-vdi-dyn.vdi vbox-vdi-dyn-d2.vdi x.raw
like "$err" "made over the disk [0-9a-f-]{36}, but .* is [0-9a-f-]{36}" "both identities are told"
run_ok "a child of a disk of VirtualBox" \
    blockmig copy -q --chain=shallow --parent vbox-vdi-dyn.vdi vbox-vdi-dyn-d1.vdi child.vdi
reads_as "$d1" "reads the same" --parent vbox-vdi-dyn.vdi child.vdi
printf '\1' | dd of=vbox-vdi-dyn.vdi bs=1 seek=408 conv=notrunc status=none
fails_with 3 "a parent that was written to since is refused" \
    blockmig copy -O raw --parent vbox-vdi-dyn.vdi vbox-vdi-dyn-d1.vdi x.raw
like "$err" "was written to since it was made: modification 01.* instead of" "with both states"
check "nothing was written" test ! -e x.raw
done_testing
