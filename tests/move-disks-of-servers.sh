#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The disk of a running machine goes from a file to an NBD export and back, and from export to export: the machine is
# connected to the server itself, and what it writes meanwhile lies in --scratch.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G
need_tool qemu-nbd

# serve NAME FILE FORMAT [OPTION...]: as an export for several clients; its URI in REPLY.
serve()
{
    local name=$1 file=$2 format=$3
    shift 3
    start qemu-nbd -f "$format" -k "$tmp/$name.sock" -x disk -t -e 10 --cache=none --discard=unmap "$@" "$file"
    server=$REPLY
    wait_for 10 test -S "$tmp/$name.sock" || not_ok "set-up: qemu-nbd"
    REPLY="nbd+unix:///disk?socket=$tmp/$name.sock"
}

mkdir "$tmp/a" "$tmp/scratch"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 16M 32M' "$tmp/a/disk.qcow2"
# A target that was used before.
must dd if=/dev/urandom of="$tmp/one.raw" bs=1M count=64 status=none
must dd if=/dev/urandom of="$tmp/two.raw" bs=1M count=96 status=none
serve one "$tmp/one.raw" raw
one=$REPLY
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=8M flush=64 log=1'
guest_wait_ready g
socket=qmp:$tmp/g/qmp

fails_with 3 "no place for the overlay" blockmig move "$socket" "$one"
like "$err" "on a server: there is no place for an overlay beside it; --scratch" "which is said"

# The hypervisor would wait for ever, and the machine with it.
serve lonely "$tmp/two.raw" raw -e 1
fails_with 3 "a server that takes one client only" blockmig move "$socket" "$REPLY" --scratch "$tmp/scratch"
stop_process "$server"
like "$err" "the machine needs a connection beside ours" "and why is said"
wait_for 5 is_running g && ok "the machine runs" || not_ok "the machine runs"

# moved NAME: what the last run said stays in said and report.
moved()
{
    said=$err report=$out
    is "$status" 0 "$1: the disk is moved" || diag "$err"
    diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, duration_s}' <<<"$out")"
    is "$(files "$tmp/scratch")" "" "$1: nothing is left in --scratch"
    is "$(guest_verdict g)" OK "$1: the guest misses nothing"
    must guest_cmd g start
}

run blockmig move "$socket" "$one" --scratch "$tmp/scratch" "${patient[@]}" --json
moved to
is "$(files "$tmp/a")" "disk.qcow2.blockmig-source " "to: the source is kept under another name"
run_ok "to: and is what the receipt says" blockmig verify "$tmp/a/disk.qcow2.blockmig-source" \
    --receipt "$(jq -r .receipt <<<"$report")"

serve two "$tmp/two.raw" raw
two=$REPLY
run blockmig move "$socket" "$two" --scratch "$tmp/scratch" "${patient[@]}" --json
moved on
like "$said" "the machine will see the larger size" "on: the larger size is announced"
like "$said" "the source of .* is kept on nbd\+unix:.*/one.sock, which cannot be made read-only" "on: and that the source is kept"

run blockmig move "$socket" "$tmp/a" --scratch "$tmp/scratch" "${patient[@]}" --json
moved back
is "$(files "$tmp/a")" "disk disk.qcow2.blockmig-source " "back: the file is called as the export was"

must truncate -s 128M "$tmp/three.raw"
serve three "$tmp/three.raw" raw
three=$REPLY
# Killed while it copies: the same command again brings the machine back, and then there.
"$blockmig" move "$socket" "$three" -O qcow2 --scratch "$tmp/scratch" "${patient[@]}" --bandwidth=8MiB/s >"$tmp/killed" 2>&1 3>&- </dev/null &
pid=$!
overlays()
{
    [ "$(ls "$tmp/a" | grep -c blockmig-1)" -gt 0 ]
}
wait_for 20 overlays || not_ok "killed: the move begins"
sleep 1
kill -KILL "$pid"
diag "$(cat "$tmp/killed")"
run blockmig move "$socket" "$three" -O qcow2 --scratch "$tmp/scratch" "${patient[@]}" --json
is "$status" 4 "killed: the same command again brings the machine back" || diag "$err"
diag "$err"
is "$(files "$tmp/a")/$(files "$tmp/scratch")" "disk disk.qcow2.blockmig-source /" "killed: nothing is left"
run blockmig move "$socket" "$three" -O qcow2 --scratch "$tmp/scratch" "${patient[@]}" --json
moved qcow2
run_ok "qcow2: the export holds an image" sh -c "qemu-img info -U '$three' | grep -q 'file format: qcow2'"

must truncate -s 96M "$tmp/four.raw"
serve four "$tmp/four.raw" raw
four=$REPLY
"$blockmig" move "$socket" "$four" -O raw --scratch "$tmp/scratch" "${patient[@]}" --bandwidth=8MiB/s -v >/dev/null 2>"$tmp/err" 3>&- </dev/null &
pid=$!
wait_for 20 grep -q '^blockmig: base' "$tmp/err"
sleep 1
kill -KILL "$server"
wait "$pid"
is "$?" 8 "a server that is killed ends the move" || diag "$(cat "$tmp/err")"
is "$(newest_job .state)" rolled-back "which is rolled back"
must rm "$tmp/four.sock"
serve four "$tmp/four.raw" raw
run blockmig move "$socket" "$four" -O raw --scratch "$tmp/scratch" "${patient[@]}" --json
is "$status" 0 "and the same command moves the disk, once the server is back" || diag "$err"

pauses=$(guest_pauses g | wc -l)
run blockmig move "$socket" "$two" --scratch "$tmp/scratch" --max-pause=0 --json
moved mirror
is "$(guest_pauses g | wc -l)" "$pauses" "mirror: the machine did not stand still"
stop_guest g
must qemu-img convert -f raw -O raw "$two" "$tmp/copy.raw"
like "$(host_verdict g 0 "$tmp/copy.raw" raw)" '^OK [1-9]' "and the host agrees"
done_testing
