#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# All disks of a machine change places in the same pause; or one of them alone.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b" "$tmp/c"
must qemu-img create -q -f qcow2 "$tmp/a/one.qcow2" 64M
must qemu-img create -q -f raw "$tmp/a/two.raw" 64M
start_guest g --libvirt-style --disk "$tmp/a/one.qcow2:qcow2" --disk "$tmp/a/two.raw:raw" \
    --append 'span=16M flush=64 log=1'
guest_wait_ready g
sleep 1
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json --delete-source
is "$status" 0 "both disks are moved"
[ "$status" -eq 0 ] || diag "$err"
cp /dev/stdin "$tmp/two.json" <<<"$out"
is "$(jq '.disks | length' "$tmp/two.json")" 2 "the report tells of both"
diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, snapshot_pause_ms}' "$tmp/two.json")"
is "$(guest_pauses g | wc -l)" 1 "the machine stood still once"
is "$(files "$tmp/a")" "" "nothing is left of the sources"
is "$(files "$tmp/b")" "one.qcow2 two.raw " "both are there"
sleep 1
is "$(guest_verdict g)" OK "the guest misses nothing"

must guest_cmd g start
run blockmig move "qmp:$tmp/g/qmp" "$tmp/c" "${patient[@]}" --disk vd1 --json --delete-source -O qcow2
is "$status" 0 "one of them is moved on, and becomes qcow2"
[ "$status" -eq 0 ] || diag "$err"
is "$(jq -r '.disks[].disk' <<<"$out")" vd1 "that one only"
is "$(files "$tmp/b")" "one.qcow2 " "the other stays"
is "$(files "$tmp/c")" "two.raw " "and it is there"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
like "$(host_verdict g 0 "$tmp/b/one.qcow2" qcow2)" '^OK [1-9]' "the host agrees for the first"
like "$(host_verdict g 1 "$tmp/c/two.raw" qcow2)" '^OK [1-9]' "and for the second"
image_clean "$tmp/b/one.qcow2" "qemu-img check finds nothing in the first"
image_clean "$tmp/c/two.raw" "nor in the second"
done_testing
