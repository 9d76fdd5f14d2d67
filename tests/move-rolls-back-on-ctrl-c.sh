#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Ctrl-C in the middle of a move: the machine runs on where it was, has lost nothing, and nothing is left over.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# Enough data that the throttled copy lasts.
make_disk()
{
    must qemu-img create -q -f "$2" "$1" 64M
    must qemu-io -f "$2" -c 'write -P 7 32M 32M' "$1"
}

base_is_copied()
{
    [ "$(stat -c %b "$1")" -gt 8192 ]
}

# cancelled NAME STYLE FORMAT
cancelled()
{
    local name=$1 disk=disk.$3 pid
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    make_disk "$tmp/$name.a/$disk" "$3"
    start_guest "$name" "$2" --disk "$tmp/$name.a/$disk:$3" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    # A shell ignores SIGINT in the background; the process itself must not.
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json --bandwidth 8MiB/s \
        >"$tmp/$name.json" 2>"$tmp/$name.err" 3>&- </dev/null &
    pid=$!
    wait_for 20 base_is_copied "$tmp/$name.b/$disk" || not_ok "$name: the copy begins"
    like "$(files "$tmp/$name.a")" 'blockmig-' "$name: there is an overlay meanwhile"
    kill -TERM "$pid"
    wait "$pid"
    is "$?" 4 "$name: exit status" || diag "$(cat "$tmp/$name.err")"
    is "$(jq -r .result "$tmp/$name.json")" rolled-back "$name: and the result says so"
    is "$(jq -r .phase "$tmp/$name.json")" rollback "$name: in this phase"
    is "$(files "$tmp/$name.a")" "$disk " "$name: nothing is left beside the source"
    is "$(files "$tmp/$name.b")" "" "$name: nor on the target"
    sleep 1
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    must guest_cmd "$name" start
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json --delete-source
    is "$status" 0 "$name: the next move works"
    [ "$status" -eq 0 ] || diag "$err"
    sleep 0.5
    is "$(guest_verdict "$name")" OK "$name: and loses nothing either"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/$disk" "$3")" '^OK [1-9]' "$name: and the host agrees"
    is "$(files "$tmp/$name.a")" "" "$name: the source is gone"
}

cancelled qcow2 --libvirt-style qcow2
cancelled raw --drive-style raw
done_testing
