#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The nbdkit plugin shows disks that QEMU cannot read as their makers wrote them, tells where they hold nothing, and
# says before it serves what is wrong with an image.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbdkit.sh"
need_tool tar xz python3 podchecker
cd "$tmp" || exit

for archive in virtualbox vhdx virtualbox-vmdk-qcow; do
    must tar -xJf "$srcdir/tests/images/$archive.tar.xz"
done
base=39cfbe214cf111da19bd93ddc134f84a8dd999d09e1ab4c5cdc35d0391981f30
d1=7a2a9c6194c015eba8f50daa4d674352a0b74ff5b4f5ef221585151e774398fc
d2=5810517235588be1ac9e0b8fa3e8435caa8d0f38aeeddbb64ab08a36c146e75b
fixed=14e7cefa5ce63831de1013bdb45a12e8c5a1177769f6d28715150043c7970a0c

# ---- content and extents ----------------------------------------------------------------------------

# Lines "START LENGTH TYPE" of nbdinfo, and what they are by our own map; neighbours of a kind are one.
merged='reduce .[] as $e ([]; if length > 0 and .[-1][2] == $e[2] then .[-1][1] += $e[1] else . + [$e] end) | .[] | join(" ")'
served_map='nbdinfo --map --json "$uri"'

# serves SUM IMAGE [FORMAT:PARENT]...
serves()
{
    local sum=$1 image=$2 parents=() options=() told
    shift 2
    for parent; do
        parents+=("parent=$parent")
        options+=(--parent "$parent")
    done
    once 'nbdcopy "$uri" - | sha256sum' -r -- "$image" "${parents[@]}"
    is "${out%% *}" "$sum" "$image reads as its maker wrote it"
    once "$served_map" -r -- "$image" "${parents[@]}"
    told=$(jq -r "[.[] | [.offset, .length, .type]] | $merged" <<<"$out")
    run blockmig map --json "${options[@]}" "$image"
    is "$told" "$(jq -r "[.extents[] | [.offset, .length, (if .status == \"zero\" then 3 else 0 end)]] | $merged" <<<"$out")" \
        "and holds data where blockmig map says so"
}

serves "$fixed" vbox-vhd-fixed.vhd
serves "$base" vbox-vhd-dyn.vhd
serves "$d1" vbox-vhd-dyn-d1.vhd
serves "$d2" vbox-vhd-dyn-d2.vhd
serves "$base" vbox-vdi-dyn.vdi
serves "$d1" vbox-vdi-dyn-d1.vdi vbox-vdi-dyn.vdi
serves "$d2" vbox-vdi-dyn-d2.vdi vbox-vdi-dyn-d1.vdi vdi:vbox-vdi-dyn.vdi
serves "$base" du-vhdx-dyn.vhdx
serves "$d1" hm-vhdx-d1.avhdx
serves "$base" vbox-vmdk-sparse.vmdk
serves "$d1" vbox-vmdk-sparse-d1.vmdk vbox-vmdk-sparse.vmdk
serves "$d2" vbox-vmdk-sparse-d2.vmdk vbox-vmdk-sparse-d1.vmdk vbox-vmdk-sparse.vmdk
serves "$base" vbox-vmdk-stream.vmdk
serves "$base" vbox-qcow2.qcow
serves "$d1" vbox-qcow2-d1.qcow qcow:vbox-qcow2.qcow

# ---- the manual page --------------------------------------------------------------------------------

run podchecker "$srcdir/tools/nbdkit-blockmig-plugin.pod"
is "$status" 0 "the manual page is valid POD"
run nbdkit "$plugin" --help
is "$(grep -oE '^\[?[a-z-]+=' <<<"$out" | tr -d '[' | sort)" \
    "$(sed -nE 's/^=item \[?B<([a-z-]+=)>.*/\1/p' "$srcdir/tools/nbdkit-blockmig-plugin.pod" | sort)" \
    "parameters of the plugin and of its manual page"

# ---- for QEMU ---------------------------------------------------------------------------------------

run_ok "a chain is flattened" blockmig copy -q -O qcow2 vbox-vhd-dyn-d2.vhd flat.qcow2
once 'qemu-img compare -F qcow2 -f raw "$uri" flat.qcow2' -r -- vbox-vhd-dyn-d2.vhd
is "$status" 0 "QEMU finds it equal to the chain that is served"
once 'nbdinfo --json "$uri"' -r -- vbox-vhd-dyn-d2.vhd
is "$(jq -c '.exports[0] | [.["export-size"], .is_read_only, .can_multi_conn, .can_cache, .is_rotational, .block_size_minimum]' \
    <<<"$out")" "[16777216,true,true,true,false,1]" "a client is told what it may do"
once 'qemu-io -f raw -c "write 0 512" "$uri"' -r -- vbox-vhd-dyn-d2.vhd
is "$status" 1 "with -r nothing can be written"

# What is only read is served so without -r.
for image in "vbox-qcow2.qcow" "vbox-vmdk-stream.vmdk"; do
    once 'nbdinfo --json "$uri"' -- "$image"
    is "$(jq -c '.exports[0].is_read_only' <<<"$out")" true "$image is never written"
done

# Sizes that are no multiple of a sector, and nothing at all.
printf 'seven b' >seven.raw
once 'nbdcopy "$uri" -' -r -- seven.raw
is "$out" "seven b" "a disk of seven bytes"
: >empty.raw
once 'nbdinfo --size "$uri"' -r -- format=raw empty.raw
is "$out" 0 "and one of none"

# ---- in the background ------------------------------------------------------------------------------

# nbdkit forks and leaves the directory: names that were relative still lead to the same files.
run_ok "nbdkit goes into the background" nbdkit -U "$tmp/socket" -P "$tmp/pid" "$plugin" vbox-vdi-dyn-d1.vdi parent=vbox-vdi-dyn.vdi
# Only as long as it has not ended: afterwards the number may be somebody else's.
pid=$(cat "$tmp/pid")
end_server()
{
    [ -z "$pid" ] || kill "$pid"
}
at_exit end_server
run bash -c 'nbdcopy "$1" - | sha256sum' - "$uri"
is "${out%% *}" "$d1" "and serves the chain from there"
run qemu-io -f raw -c 'write -P 1 0 512' "$uri"
is "$status" 0 "also for writing"
kill "$pid"
check "it ends" wait_for 10 not_running "$pid"
pid=

# ---- refused before anything is served --------------------------------------------------------------

# refuses PATTERN WHAT ARGUMENTS...
refuses()
{
    local pattern=$1 what=$2
    shift 2
    once true -- "$@"
    is "$status" 1 "$what is refused"
    like "$err" "$pattern" "and the reason is told"
}

refuses 'does not name its parent' "a child without its parent" vbox-vdi-dyn-d2.vdi
refuses 'made over the disk .*, but .* is' "another parent" vbox-vdi-dyn-d2.vdi parent=vbox-vdi-dyn.vdi
refuses 'No such file' "a file that is not there" nothing.vhd
refuses 'unknown format|no format|known' "a format that is not known" vbox-vhd-dyn.vhd format=vhs
refuses 'unknown parameter "vhd"' "a parameter that is not known" vbox-vhd-dyn.vhd vhd=1
refuses 'image is missing' "no image"
for key in file allow-root parent; do
    refuses "$key=: the value is empty" "an empty $key" vbox-vhd-dyn.vhd "$key="
done
mkdir apart
must mv vbox-vhd-dyn.vhd apart
refuses 'none of its names' "a parent elsewhere" vbox-vhd-dyn-d1.vhd
mkdir inside
must qemu-img create -q -f qcow2 -b "$tmp/apart/vbox-vhd-dyn.vhd" -F raw inside/image.qcow2 16M
refuses 'outside' "a backing file outside the directory" inside/image.qcow2
once 'nbdinfo --size "$uri"' -r -- inside/image.qcow2 allow-root=apart
is "$out" 16777216 "it can be allowed"

running_machine "$tmp/flat.qcow2" qcow2
machine=$REPLY
refuses 'Failed to get .* lock' "the disk of a running machine" flat.qcow2
stop_process "$machine"

# Hostile images of every format, of which other tests try all: refused here with what blockmig info says.
count=0 wrong=''
for format in qcow qcow2 vhd vhdx vdi vmdk; do
    mkdir "hostile-$format"
    must python3 "$srcdir/tests/make-hostile-$format.py" "hostile-$format"
    cases=$out
    while IFS=$'\t' read -r name outcome pattern; do
        [ "$outcome" = open ] && [ $((count++ % 10)) -eq 0 ] || continue
        once true -r -- "$tmp/hostile-$format/$name.$format"
        [ "$status" -eq 1 ] && grep -Eq -e "$pattern" <<<"$err" || wrong+="$name: $status: $err; "
    done <<<"$cases"
done
is "$wrong" "" "every tenth of $count hostile images is refused at the start, with format, field and value"
done_testing
