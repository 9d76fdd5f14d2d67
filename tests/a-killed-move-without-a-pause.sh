#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Killed exactly at a system call, anywhere in a move without a pause: the machine runs on, with both disks on one side,
# and the same command again rolls back or finishes; nothing is lost and nothing is left over.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_tool strace
need_guest
need_free 1G
use_seed
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

# move_to DIRECTORY: as the user calls it.
move_to()
{
    run blockmig move "qmp:$tmp/g/qmp" "$1" --max-pause=0 --delete-source --json
}

# killed_at CALL COUNT DIRECTORY: false if the command came to its end before its COUNTth CALL.
killed_at()
{
    timeout 120 strace -f -qq -o /dev/null -e trace="$1" -e inject="$1:signal=SIGKILL:when=$2" \
        "$builddir/tools/blockmig" move "qmp:$tmp/g/qmp" "$3" --max-pause=0 --delete-source -q >/dev/null 2>&1 3>&-
    [ $? -ne 0 ]
}

# judge WHERE FROM TO: what is wrong after a kill; afterwards the disks are in TO.
judge()
{
    local status_of
    status_of=$(qmp g '{"execute": "query-status"}' | jq -r .status)
    [ "$status_of" = running ] || echo "$1: the machine is $status_of"
    move_to "$3"
    if [ "$status" -eq 4 ]; then
        [ "$(files "$2")-$(files "$3")" = "one.qcow2 two.raw -" ] || echo "$1: rolled back, $(files "$2") and $(files "$3") are left"
        move_to "$3"
    fi
    # The very last of its acts is to write down that it is done.
    [[ $status -eq 0 || $status,$err = 3,*"the disk is there"* ]] || echo "$1: exit status $status: $err"
    [ "$(files "$2")-$(files "$3")" = "-one.qcow2 two.raw " ] || echo "$1: done, $(files "$2") and $(files "$3") are left"
    [ "$(guest_verdict g)" = OK ] || echo "$1: the guest misses something"
    guest_cmd g start >/dev/null
}

from=$tmp/a to=$tmp/b
mkdir "$from" "$to"
must qemu-img create -q -f qcow2 "$from/one.qcow2" 32M
must qemu-img create -q -f raw "$from/two.raw" 32M
start_guest g --libvirt-style --disk "$from/one.qcow2:qcow2" --disk "$from/two.raw:raw" --append 'span=8M flush=64 log=1'
guest_wait_ready g

# A move has some 100 of the first two, 10 of the third and 100 of the last.
pick 3 40
rounds=$REPLY
for call in sendmsg:110 recvfrom:130 renameat2:12 fdatasync:100; do
    wrong=
    killed=0
    for _ in $(seq "$rounds"); do
        when=$((RANDOM % ${call#*:} + 1))
        if killed_at "${call%:*}" "$when" "$to"; then
            killed=$((killed + 1))
            wrong+=$(judge "${call%:*} $when" "$from" "$to")
        fi
        swap=$from from=$to to=$swap
    done
    is "$wrong" "" "killed at $killed of $rounds calls of ${call%:*}"
    [ -z "$wrong" ] || break
done
stop_guest g
like "$(host_verdict g 0 "$from/one.qcow2" qcow2)" '^OK [1-9]' "the host agrees for the first disk"
like "$(host_verdict g 1 "$from/two.raw" raw)" '^OK [1-9]' "and for the second"
image_clean "$from/one.qcow2" "qemu-img check finds nothing"
done_testing
