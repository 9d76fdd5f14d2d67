#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --max-pause is a contract: a pause that would be longer is not begun, and the machine stays where it was.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
guest_wait_ready g
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" --json --max-pause=1ms
is "$status" 5 "a pause of 1 ms is not possible" || diag "$err"
like "$err" 'a pause would take [0-9]+ ms, and --max-pause allows 1 ms' "and that is said with both figures"
is "$(jq -r .result <<<"$out")" parked "the result says so"
is "$(jq -r .pause_ms <<<"$out")" null "no switch was begun"
is "$(jq -r '.pause_forecast_ms > 1' <<<"$out")" true "the forecast is told"
is "$(cd "$tmp" && ls a b | tr '\n' ' ')" "a: disk.qcow2  b: " "nothing is left over"
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
like "$(host_verdict g 0 "$tmp/a/disk.qcow2" qcow2)" '^OK [1-9]' "and the host agrees"
image_clean "$tmp/a/disk.qcow2" "qemu-img check finds nothing"
done_testing
