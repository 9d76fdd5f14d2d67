#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What a killed run left is looked at before it is used: damage anywhere leads to a new copy, not to a wrong one.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img jq python3

random_file "$tmp/source" 64M 12

# killed TARGET FORMAT
killed()
{
    local pid
    start "$blockmig" copy -q --bandwidth=8MiB/s -O "$2" "$tmp/source" "$1"
    pid=$REPLY
    wait_for 30 has_checkpoint "$1"
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
}

# damage KIND PART
damage()
{
    case $1 in
        magic) printf XXXX | dd of="$2" conv=notrunc status=none ;;
        table) printf '\377\377\377\377' | dd of="$2" bs=1 seek=65536 conv=notrunc status=none ;;
        data) printf XXXX | dd of="$2" bs=1 seek=$((3 << 20)) conv=notrunc status=none ;;
        short) truncate -s 100k "$2" ;;
        empty) truncate -s 0 "$2" ;;
    esac
}

kinds="magic:qcow2 table:qcow2 data:qcow2 short:qcow2 empty:qcow2 data:raw short:raw empty:raw"
for kind in $kinds; do
    killed "$tmp/$kind" "${kind#*:}" &
done
wait
for kind in $kinds; do
    damage "${kind%:*}" "$tmp/$kind.blockmig-part"
    check "$kind: the same command ends well" "$blockmig" copy -O "${kind#*:}" "$tmp/source" "$tmp/$kind"
    like "$err" "from the beginning" "$kind: and says that it begins anew"
    same_content "$tmp/source" "$tmp/$kind" "$kind: with the content" -f raw -F "${kind#*:}"
    [ "${kind#*:}" = raw ] || image_clean "$tmp/$kind" "$kind: clean"
done
done_testing
