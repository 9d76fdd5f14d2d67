#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# While the way back is open the source's medium goes bad: going back finds that by its own proof, and the machine
# returns to the target with all that it wrote; it goes back when the source is in order again.  The keeper and the
# guard are killed on the way: nothing depends on them.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f raw "$tmp/a/disk.raw" 64M
must qemu-io -f raw -c 'write -P 7 16M 48M' "$tmp/a/disk.raw"
start_guest g --libvirt-style --disk "$tmp/a/disk.raw:raw" --append 'span=8M flush=64 log=1'
guest_wait_ready g
must blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --keep-failback=1h --json
id=$(jq -r .job <<<"$out")
at_exit end_keeper "$id"

in_window()
{
    is "$(blockmig job show --json "$id" | jq -r "[.state, .failback.keeper > 0] | join(\" \")")" "failback true" \
        "$1: the way back is still open, and kept"
    wait_for 10 is_running g && ok "$1: the machine runs" || not_ok "$1: the machine runs"
    is "$(guest_verdict g)" OK "$1: the guest misses nothing"
    guest_cmd g start >/dev/null
}

# damage BYTE: where the guest does not write; past the cache and without a lock, as a bad disk would.
damage()
{
    tr '\0' "$1" </dev/zero | head -c 4096 >"$tmp/block"
    must dd if="$tmp/block" of="$source" bs=4096 count=1 seek=$((20 << 8)) conv=notrunc oflag=direct status=none
}

source=$(ls "$tmp"/a/disk.raw*-0 2>/dev/null || ls "$tmp/a/disk.raw")
diag "$(files "$tmp/a") and $(files "$tmp/b")"
damage '\011'
run blockmig job failback "$id" "${patient[@]}" --json
is "$status" 6 "a source that went bad: exit status" || diag "$err"
like "$err" "differs from .* in the 1048576 bytes at 20971520" "a source that went bad: it is told, with the range"
in_window "a source that went bad"

source=$(ls "$tmp"/a/disk.raw*-0 2>/dev/null || ls "$tmp/a/disk.raw")
damage '\007'
kill -KILL "$(keeper "$id")"
"$blockmig" job failback "$id" "${patient[@]}" --json >"$tmp/json" 2>"$tmp/err" 3>&- </dev/null &
pid=$!
guard=
for try in $(seq 5000); do
    guard=$(pgrep -P "$pid" -f blockmig-guard) && break
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.002
done
[ -n "$guard" ] && kill -KILL "$guard" && ok "the guard is killed" || not_ok "the guard is killed"
wait "$pid"
state=$?
diag "exit status $state: $(cat "$tmp/err")"
if [ "$state" -ne 0 ]; then
    like "$(cat "$tmp/err")" "guard" "without its guard it does not go on, and says so"
    in_window "without its guard"
    must blockmig job failback "$id" "${patient[@]}"
fi
is "$(files "$tmp/a")/$(files "$tmp/b")" "disk.raw /" "it goes back, and nothing is left over"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
like "$(host_verdict g 0 "$tmp/a/disk.raw" raw)" '^OK [1-9]' "and the host agrees"
done_testing
