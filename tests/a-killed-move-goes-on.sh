#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# SIGKILL in the middle of a move: the machine runs on; the same command again goes on, from the checkpoint of the
# base, and finishes the move.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# killed NAME STYLE FORMAT WHEN [OPTION...]: WHEN is a command that says when to kill; ends with the machine on the
# target.
killed()
{
    local name=$1 disk=disk.$3 format=$3 when=$4 pid try target
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$3" "$tmp/$name.a/$disk" 64M
    must qemu-io -f "$3" -c 'write -P 7 32M 32M' "$tmp/$name.a/$disk"
    start_guest "$name" "$2" --disk "$tmp/$name.a/$disk:$3" --append 'span=16M flush=64 log=1'
    guest_wait_ready "$name"
    shift 4
    "$builddir/tools/blockmig" move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" "$@" 2>"$tmp/$name.err" 3>&- </dev/null &
    pid=$!
    for try in $(seq 3000); do
        "$when" "$tmp/$name.a/$disk" "$tmp/$name.b/$disk" 3>&- && break
        sleep 0.003
    done
    kill -KILL "$pid"
    wait "$pid" 2>/dev/null
    wait_for 5 is_running "$name" && ok "$name: the machine runs on" || not_ok "$name: the machine runs on"
    target=$(stat -c %i "$tmp/$name.b/$disk")
    diag "left: $(files "$tmp/$name.a") and $(files "$tmp/$name.b")"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --json
    diag "$(jq -c '{result, phase, error}' <<<"$out")"
    is "$status" 0 "$name: the move is done in the end"
    [ "$status" -eq 0 ] || diag "$err"
    is "$(jq -r .resumed <<<"$out")" true "$name: it was gone on with"
    is "$(stat -c %i "$tmp/$name.b/$disk")" "$target" "$name: with the target that there was"
    is "$(files "$tmp/$name.a")" "$disk.blockmig-source " "$name: the kept source is all that is left"
    is "$(files "$tmp/$name.b")" "$disk " "$name: and the disk"
    sleep 0.3
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.b/$disk" "$format")" '^OK [1-9]' "$name: and the host agrees"
    run_ok "$name: the kept source is what the receipt says" blockmig verify "$tmp/$name.a/$disk.blockmig-source" \
        --receipt "$(jq -r .receipt <<<"$out")"
}

behind_a_checkpoint()
{
    has_checkpoint "$(dirname "$2")" >/dev/null 2>&1
}

at_the_switch()
{
    [ -e "$2.blockmig-new" ]
}

after_the_switch()
{
    [ ! -e "$1" ]
}

killed base --libvirt-style qcow2 behind_a_checkpoint --bandwidth 4MiB/s
killed raw --drive-style raw behind_a_checkpoint --bandwidth 4MiB/s
killed switch --libvirt-style qcow2 at_the_switch
killed prove --drive-style qcow2 after_the_switch
done_testing
