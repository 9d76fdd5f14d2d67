#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A failback window that nobody closes is closed by its keeper when it ends; without the keeper it is overdue, and the
# next command of the machine closes it.  Whatever goes wrong on the way back leaves it open.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

state()
{
    blockmig job show --json "$id" | jq -r .state
}

is_state()
{
    [ "$(state)" = "$1" ]
}

# moved FROM TO TIME: sets id.
moved()
{
    run blockmig move "qmp:$tmp/g/qmp" "$tmp/$2" "${patient[@]}" "--keep-failback=$3" --delete-source --json
    is "$status" 0 "moved from $1 to $2, the way back is open for $3"
    [ "$status" -eq 0 ] || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper "$id"
}

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/one.qcow2" 64M
must qemu-img create -q -f raw "$tmp/a/two.raw" 64M
start_guest g --libvirt-style --disk "$tmp/a/one.qcow2:qcow2" --disk "$tmp/a/two.raw:raw" \
    --append 'span=16M flush=64 log=1'
guest_wait_ready g

moved a b 3s
like "$(files "$tmp/a")" 'blockmig-0' "the source is not deleted yet"
wait_for 60 is_state "done" && ok "the keeper closes it" || not_ok "the keeper closes it: $(state)"
is "$(files "$tmp/a")/$(files "$tmp/b")" '/one.qcow2 two.raw ' "the source is deleted then, and nothing is left"
wait_for 10 keeper_is_gone "$id" && ok "and the keeper is gone" || not_ok "and the keeper is gone"
like "$(cat "$BLOCKMIG_STATE_DIR/keeper.log")" "$id: the way back is closed" "it has a log"
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start

moved b a 3s
end_keeper "$id"
wait_for 30 is_state overdue && ok "without a keeper it is overdue" || not_ok "without a keeper it is overdue: $(state)"
like "$(blockmig job list)" "should have been closed.*job finish $id" "and that is told with the command"
moved a b 1h
is "$(blockmig job list --json | jq -r '[.jobs[].state] | join(" ")')" 'failback done done' "the next move closes it first"
is "$(files "$tmp/a" | grep -c blockmig-source)" 0 "as it was told to"

fails_with 5 "a pause of 1 ms is not possible on the way back either" blockmig job failback "$id" --max-pause=1ms
like "$err" 'a pause would take [0-9]+ ms, and --max-pause allows 1 ms' "and that is said with both figures"
is "$(state)" failback "the way back is still open"
[ -n "$(keeper "$id")" ] && ok "and kept" || not_ok "and kept"
is "$(files "$tmp/b")" "one.qcow2 one.qcow2.blockmig-0 two.raw.blockmig-0 two.raw.blockmig-1 " "the target's layers are two again"
fails_with 3 "resuming is not the word for it" blockmig job resume "$id"
like "$err" "job finish $id.*job failback $id" "the words are told"
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start
sleep 2
run blockmig job failback "$id" "${patient[@]}" --json
is "$status" 0 "with more patience the machine is brought back"
[ "$status" -eq 0 ] || diag "$err"
is "$(jq '.disks | length' <<<"$out")" 2 "with both disks"
is "$(files "$tmp/a")/$(files "$tmp/b")" 'one.qcow2 two.raw /' "to where it was"
sleep 1
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
like "$(host_verdict g 0 "$tmp/a/one.qcow2" qcow2)" '^OK [1-9]' "the host agrees for the first"
like "$(host_verdict g 1 "$tmp/a/two.raw" raw)" '^OK [1-9]' "and for the second"
image_clean "$tmp/a/one.qcow2" "qemu-img check finds nothing"
done_testing
