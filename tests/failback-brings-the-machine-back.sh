#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that was moved with --keep-failback goes back after it has written for a while: with all of that, onto the
# same names, and nothing is left over.  Or the window is closed, and it stays.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# open_window NAME STYLE FORMAT [OPTION...]: moves the disk of a new machine and leaves the way back open; sets id.
open_window()
{
    local name=$1 style=$2 format=$3
    disk=disk.$3
    shift 3
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f "$format" "$tmp/$name.a/$disk" 64M
    start_guest "$name" "$style" --disk "$tmp/$name.a/$disk:$format" --append 'span=32M flush=64 log=1'
    guest_wait_ready "$name"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --keep-failback=2h --json "$@"
    is "$status" 0 "$name: the disk is moved"
    [ "$status" -eq 0 ] || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper "$id"
    is "$(jq -r '[.result, .failback.failback, .failback.finish, .source] | join(", ")' <<<"$out")" \
        "done, blockmig job failback $id, blockmig job finish $id, kept" "$name: the report names the way back"
    is "$(blockmig job show --json "$id" | jq -r '[.state, .phase, .result, .failback.keeper > 0] | join(" ")')" \
        'failback window  true' "$name: so does the journal, and somebody keeps it"
    diag "$(files "$tmp/$name.a") and $(files "$tmp/$name.b")"
}

# gone_back NAME FORMAT: everything is as it was before the move, and nothing is lost.
gone_back()
{
    local name=$1 format=$2
    is "$status" 0 "$name: the machine is brought back"
    [ "$status" -eq 0 ] || diag "$err"
    diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, duration_s, d: .disks[0].bytes_in_pause}' <<<"$out")"
    is "$(jq -r '[.command, .result, .failback] | join(" ")' <<<"$out")" 'job failback done ' "$name: the report says so"
    is "$(files "$tmp/$name.a")" "$disk " "$name: the source is as it was"
    is "$(files "$tmp/$name.b")" "" "$name: nothing is left of the target"
    is "$(blockmig job show --json "$id" | jq -r '[.state, .failback] | join(" ")')" "failed-back " "$name: the journal says so"
    wait_for 10 keeper_is_gone "$id" && ok "$name: nobody keeps it" || not_ok "$name: nobody keeps it"
    sleep 1
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$tmp/$name.a/$disk" "$format")" '^OK [1-9]' "$name: and the host agrees"
    [ "$format" != qcow2 ] || image_clean "$tmp/$name.a/$disk" "$name: qemu-img check finds nothing"
}

there_and_back()
{
    local name=$1
    open_window "$@"
    sleep 10
    run blockmig job failback "$id" --json
    is "$(jq -r '.target + " " + .command' "$(jq -r .receipt <<<"$out")")" "$tmp/$name.a/$disk move" \
        "$name: there is a receipt of the way back"
    gone_back "$name" "$3"
}

use_seed
some 2 'qcow2 --libvirt-style qcow2' 'raw --drive-style raw' 'other --libvirt-style raw -O qcow2'
for case in "${chosen[@]}"; do
    read -ra words <<<"$case"
    there_and_back "${words[@]}"
done

# And once to the end.
open_window stay --libvirt-style qcow2
fails_with 3 "stay: no other move while the way back is open" blockmig move "qmp:$tmp/stay/qmp" "$tmp/stay.a" "${patient[@]}"
like "$err" "job finish $id.*job failback $id" "stay: and both commands are named"
sleep 2
run blockmig job finish "$id" --json
is "$status" 0 "stay: the way back is closed"
[ "$status" -eq 0 ] || diag "$err"
is "$(files "$tmp/stay.a")" "$disk.blockmig-source " "stay: the source is kept under another name"
is "$(files "$tmp/stay.b")" "$disk " "stay: the target is one image"
is "$(blockmig job show --json "$id" | jq -r .state)" "done" "stay: the journal says so"
fails_with 3 "stay: there is no way back any more" blockmig job failback "$id"
like "$err" "closed" "stay: and that is said"
sleep 0.5
is "$(guest_verdict stay)" OK "stay: the guest misses nothing"
stop_guest stay
like "$(host_verdict stay 0 "$tmp/stay.b/$disk" qcow2)" '^OK [1-9]' "stay: and the host agrees"
image_clean "$tmp/stay.b/$disk" "stay: qemu-img check finds nothing"
done_testing
