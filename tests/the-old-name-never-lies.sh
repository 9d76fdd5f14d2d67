#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The machine and blockmig are both killed in the middle of a move: the disk's name leads to all that was written, or
# to nothing at all.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

while_copying()
{
    [ -e "$1" ] && [ "$(stat -c %b "$1")" -gt 16384 ]
}

# crash NAME STYLE FORMAT
crash()
{
    local name=$1 disk=disk.$3 pid
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$3" "$tmp/$name.a/$disk" 64M
    must qemu-io -f "$3" -c 'write -P 7 32M 32M' "$tmp/$name.a/$disk"
    start_guest "$name" "$2" --disk "$tmp/$name.a/$disk:$3" --append 'span=16M flush=16 log=1'
    guest_wait_ready "$name"
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --bandwidth 16MiB/s 3>&- </dev/null &
    pid=$!
    wait_for 20 while_copying "$tmp/$name.b/$disk" || not_ok "$name: the copy begins"
    kill -KILL "$pid"
    kill_guest "$name"
    wait "$pid" 2>/dev/null
}

crash q --libvirt-style qcow2
like "$(host_verdict q 0 "$tmp/q.a/disk.qcow2" qcow2)" '^OK [1-9]' "qcow2: the name leads to every flushed write"
is "$(qemu-img info --output=json "$tmp/q.a/disk.qcow2" | jq -r '."backing-filename"')" disk.qcow2.blockmig-0 \
    "qcow2: the chain is written in its headers"
start_guest q --libvirt-style --disk "$tmp/q.a/disk.qcow2:qcow2" --append 'span=16M flush=16 log=1'
guest_wait_ready q 2
sleep 0.5
stop_guest q
like "$(host_verdict q 0 "$tmp/q.a/disk.qcow2" qcow2)" '^OK [1-9]' "qcow2: and the machine starts from its old command line"

for style in --drive-style --libvirt-style; do
    name=r$style
    crash "$name" "$style" raw
    fails_with 1 "raw, $style: the name leads nowhere, and certainly not to the frozen base" \
        qemu-io -f raw -c 'read 0 4096' "$tmp/$name.a/disk.raw"
    like "$(host_verdict "$name" 0 "$tmp/$name.a/disk.raw.blockmig-1" qcow2)" '^OK [1-9]' \
        "raw, $style: the overlay beside it leads to every flushed write"
done

# Without a pause the machine writes to the target for a while, above the source.
straddles()
{
    [ -e "$tmp/s.b/disk.qcow2.blockmig-new" ] || return 1
    kill -STOP "$1"
    case $(qmp s '{"execute": "query-block"}' | jq -r '[.. | .inserted? // empty][0]."node-name"') in
        bm-*-t1) return 0 ;;
    esac
    kill -CONT "$1"
    return 1
}

mkdir "$tmp/s.a" "$tmp/s.b"
must qemu-img create -q -f qcow2 "$tmp/s.a/disk.qcow2" 512M
must qemu-io -f qcow2 -c 'write -P 7 64M 448M' "$tmp/s.a/disk.qcow2"
start_guest s --libvirt-style --disk "$tmp/s.a/disk.qcow2:qcow2" --append 'span=16M flush=16 log=1'
guest_wait_ready s
"$builddir/tools/blockmig" move "qmp:$tmp/s/qmp" "$tmp/s.b" --method=mirror 3>&- </dev/null &
pid=$!
for _ in $(seq 3000); do
    straddles "$pid" && break
    sleep 0.01
done
kill -KILL "$pid"
kill_guest s
wait "$pid" 2>/dev/null
[ -e "$tmp/s.a/disk.qcow2" ] && not_ok "mirror: the name leads nowhere" || ok "mirror: the name leads nowhere"
like "$(qemu-img info --output=json "$tmp/s.b/disk.qcow2.blockmig-new" | jq -r '."backing-filename"')" \
    "^$tmp/s.a/disk.qcow2.blockmig-[0-9]" "mirror: the overlay on the target stands on the source"
like "$(host_verdict s 0 "$tmp/s.b/disk.qcow2.blockmig-new" qcow2)" '^OK [1-9]' "mirror: and leads to every flushed write"
done_testing
