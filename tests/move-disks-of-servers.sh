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
stop_guest g
like "$(host_verdict g 0 "$tmp/a/disk" raw)" '^OK [1-9]' "back: and the host agrees"
done_testing
