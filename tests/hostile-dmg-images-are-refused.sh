#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Crafted DMGs, which QEMU reads for us: refused with field and value, or an error that says where, soon; never something
# else than what the image holds, of which QEMU does not tell all.
. "${srcdir:-.}/tests/lib.sh"
need_tool python3 qemu-nbd
mkdir "$tmp/images"
must python3 "$srcdir/tests/make-hostile-dmg.py" "$tmp/images"
cases=$out
before=$(cd "$tmp/images" && sha256sum -- * | sha256sum)
refused='' failed='' wrong='' left='' count=0
while IFS=$'\t' read -r name outcome pattern; do
    count=$((count + 1))
    run timeout 30 "$blockmig" copy -q -f dmg -O raw "$tmp/images/$name.dmg" "$tmp/copy"
    case $outcome in
        open) [ "$status" -eq 3 ] && grep -Eq -e "$pattern" <<<"$err" || refused+="$name: exit $status: $err; " ;;
        use) [ "$status" -eq 1 ] && grep -Eq -e "$pattern" <<<"$err" || failed+="$name: exit $status: $err; " ;;
        read) [ "$status" -eq 0 ] && cmp "$tmp/images/disk.raw" "$tmp/copy" || wrong+="$name: exit $status: $err; " ;;
    esac
    [ "$outcome" = read ] || [ ! -e "$tmp/copy" ] || left+="$name "
    rm -rf "$tmp/copy"* "$BLOCKMIG_STATE_DIR"
done <<<"$cases"
is "$([ "$count" -gt 80 ] && echo many)" many "$count images"
is "$refused" "" "what is wrong in trailer and tables is refused"
is "$failed" "" "what cannot be unpacked is an error that says where"
is "$wrong" "" "what is right reads right"
is "$left" "" "no target is left"
is "$(cd "$tmp/images" && sha256sum -- * | sha256sum)" "$before" "nothing was written"
done_testing
