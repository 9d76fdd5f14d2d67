#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Backing files are looked for under the directory of the image, or where --allow-root says.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io
use_seed

mkdir "$tmp/store" "$tmp/elsewhere"
make_pattern_image "$tmp/elsewhere/base.qcow2" qcow2 8M 20
must qemu-img create -q -f qcow2 -b "$tmp/elsewhere/base.qcow2" -F qcow2 "$tmp/store/top.qcow2"
must qemu-img create -q -f qcow2 -b ../elsewhere/base.qcow2 -F qcow2 "$tmp/store/relative.qcow2"
ln -s ../elsewhere/base.qcow2 "$tmp/store/link.qcow2"
must qemu-img create -q -f qcow2 -b link.qcow2 -F qcow2 "$tmp/store/linked.qcow2"

for top in top relative linked; do
    fails_with 3 "$top: a backing file elsewhere is refused" \
        blockmig copy "$tmp/store/$top.qcow2" "$tmp/copy-$top.qcow2"
    like "$err" "allow-root" "$top: the message says what would allow it"
    check "$top: no target is left" test ! -e "$tmp/copy-$top.qcow2"
    check "$top: --allow-root allows it" \
        blockmig copy --allow-root "$tmp/elsewhere" "$tmp/store/$top.qcow2" "$tmp/copy-$top.qcow2"
    same_content "$tmp/elsewhere/base.qcow2" "$tmp/copy-$top.qcow2" "$top: and it is read through"
done

# rebase -u writes names that nobody checks.
bad_backing()
{
    must qemu-img create -q -f qcow2 "$tmp/store/bad.qcow2" 8M
    must qemu-img rebase -u -f qcow2 -b "$2" ${3:+-F "$3"} "$tmp/store/bad.qcow2"
    fails_with 3 "$1" timeout 20 "$blockmig" copy --allow-root "$tmp" "$tmp/store/bad.qcow2" "$tmp/bad-copy.qcow2"
    rm -f "$tmp/store/bad.qcow2"
}
bad_backing "a chain that contains itself" bad.qcow2 qcow2
bad_backing "a backing file that is missing" missing.qcow2 qcow2
bad_backing "json:" 'json:{"driver":"file","filename":"/etc/hostname"}' raw
bad_backing "a protocol" nbd://localhost/x raw
bad_backing "a device outside" /dev/zero raw
bad_backing "a file of the system" /etc/passwd raw
done_testing
