#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Random chains of VHDX, with every state of a block, both sector sizes and logs that are not applied, read as they
# must, and nothing is written to them. What we write of them, or into them, others read.
. "${srcdir:-.}/tests/lib.sh"
need_tool python3 qemu-img jq
use_seed
driver=$builddir/tests/helpers/image-driver
disks=$tmp/disks

# chain [plain]: sets count, sector and top.
chain()
{
    rm -rf "$disks"
    mkdir "$disks"
    one=$((RANDOM << 15 | RANDOM))
    read -r count sector < <(python3 "$srcdir/tests/make-vhdx-chain.py" "$disks" "$one" "$@")
    top=$disks/$((count - 1))
    diag "chain $one: $count images, sectors of $sector bytes"
}

fingerprint()
{
    (cd "$disks" && stat -c '%n %s %Y %Z' -- *.vhdx && sha256sum -- *.vhdx) | sha256sum
}

failed()
{
    diag "chain $one: $*"
    diag "$err"
    failures=$((failures + 1))
}

# ---- reading ----------------------------------------------------------------------------------------

pick 6 1000
rounds=$REPLY failures=0 dirty=0 deep=0
for ((i = 0; i < rounds; i++)); do
    chain
    before=$(fingerprint)
    run blockmig verify -q --strict -F raw "$top.vhdx" "$top.raw"
    [ "$status" -eq 0 ] || failed "is not what it should be: exit $status"
    run blockmig info --json "$top.vhdx"
    grep -q '"dirty": *"yes"' <<<"$out" && dirty=$((dirty + 1))
    [ "$count" -gt 1 ] && deep=$((deep + 1))
    [ "$(fingerprint)" = "$before" ] || failed "was written to"
    rm -f "$tmp/flat.vhdx"
    run blockmig copy -q -O vhdx "$top.vhdx" "$tmp/flat.vhdx"
    [ "$status" -eq 0 ] || failed "cannot be flattened: exit $status"
    if [ "$sector" = 512 ]; then
        run qemu-img compare -f vhdx -F raw "$tmp/flat.vhdx" "$top.raw"
        [ "$status" -eq 0 ] || failed "flattened, QEMU sees something else: $out"
    fi
done
is "$failures" 0 "$rounds chains, $deep of them of several images, $dirty with a log in use"

# ---- libvhdi agrees with the model ------------------------------------------------------------------

if /usr/bin/python3 -c 'import pyvhdi' 2>/dev/null; then
    pick 3 200
    rounds=$REPLY failures=0
    for ((i = 0; i < rounds; i++)); do
        chain plain
        mapfile -t files < <(for ((k = count - 1; k >= 0; k--)); do echo "$disks/$k.vhdx"; done)
        run /usr/bin/python3 "$srcdir/tests/read-libvhdi.py" "$tmp/lib.raw" "${files[@]}"
        cmp "$tmp/lib.raw" "$top.raw" || failed "libvhdi sees something else: exit $status"
        rm -rf "$tmp/kept"
        mkdir "$tmp/kept"
        run blockmig copy -q --chain=keep "$top.vhdx" "$tmp/kept/"
        [ "$status" -eq 0 ] || failed "cannot be kept: exit $status"
        run /usr/bin/python3 "$srcdir/tests/read-libvhdi.py" "$tmp/lib.raw" "${files[@]/#$disks/$tmp/kept}"
        cmp "$tmp/lib.raw" "$top.raw" || failed "copied, libvhdi sees something else: exit $status"
    done
    is "$failures" 0 "libvhdi sees $rounds chains and their copies so, too"
else
    skip "python3-libvhdi is not installed" "libvhdi sees chains so, too"
fi

# ---- writing ----------------------------------------------------------------------------------------

pick 4 300
rounds=$REPLY failures=0
for ((i = 0; i < rounds; i++)); do
    chain
    parent=()
    [ "$count" -gt 1 ] && parent=("vhdx:$((count - 2)).vhdx")
    run "$driver" random vhdx "$top.vhdx" "$tmp/model.raw" "$RANDOM" 40 "${parent[@]}"
    [ "$status" -eq 0 ] || failed "cannot be written to: exit $status"
    run blockmig verify -q --strict -F raw "$top.vhdx" "$tmp/model.raw"
    [ "$status" -eq 0 ] || failed "is not what was written: exit $status"
    if [ "$sector" = 512 ] && [ "$count" = 1 ]; then
        run qemu-img compare -f vhdx -F raw "$top.vhdx" "$tmp/model.raw"
        [ "$status" -eq 0 ] || failed "QEMU sees something else: $out"
        run qemu-img check -q -f vhdx "$top.vhdx"
        [ "$status" -eq 0 ] || failed "QEMU finds errors"
    fi
done
is "$failures" 0 "random writes into $rounds of them, in whatever state they were"
done_testing
