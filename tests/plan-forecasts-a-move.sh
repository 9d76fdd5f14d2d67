#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# `plan move --sample` watches the machine and says what a move would take; it changes nothing, and a real move
# agrees with it.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

# files DIRECTORY: what is in it, in one line.
files()
{
    (cd "$1" && LC_ALL=C ls -A | tr '\n' ' ')
}

# within WHAT VALUE LEAST MOST
within()
{
    is "$(jq -n "$2 >= $3 and $2 <= $4")" true "$1 ($2 is between $3 and $4)"
}

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 256M
must qemu-io -f qcow2 -c 'write -P 7 64M 128M' "$tmp/a/disk.qcow2"
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=48M flush=64 log=1 rate=200'
guest_wait_ready g
before=$(guest_stats g .writes)
begin=$(date +%s.%N)
run blockmig plan move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json --sample 4s
took=$(jq -n "$(date +%s.%N) - $begin")
rate=$(jq -n "($(guest_stats g .writes) - $before) * 4096 / $took")
is "$status" 0 "a plan with a sample" || diag "$err"
is "$(jq -n "$took >= 4")" true "takes its time"
plan=$out
diag "$(jq -c '[.forecast, .pause_forecast_ms]' <<<"$plan")"
is "$(files "$tmp/a") $(files "$tmp/b")" "disk.qcow2  " "nothing is changed"
is "$(guest_pauses g | wc -l)" 0 "the machine did not stand still"
is "$(jq -r .result <<<"$plan")" planned "the result says so"
within "what the machine writes" "$(jq .forecast.dirty_rate <<<"$plan")" "$rate / 2" "$rate * 2"
like "$(jq -r '.plan[]' <<<"$plan")" 'pass 2: at most [0-9.]+ [KM]iB in [0-9]+ ms' "the passes are listed"
like "$(jq -r '.plan[]' <<<"$plan")" 'a pause of about [0-9]+ ms; 30000 ms are allowed' "and the pause"
like "$(jq -r '.plan[]' <<<"$plan")" 'about .* at most .* of overlays beside the source, at most .* on the target' \
    "and time and space"

run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json
is "$status" 0 "the move" || diag "$err"
diag "$(jq -c '[.passes, .pause_ms, .pause_forecast_ms, .duration_s, .disks[0].target_allocated]' <<<"$out")"
within "the target's size" "$(jq '.disks[0].target_allocated' <<<"$out")" 134217728 "$(jq .forecast.target_bytes <<<"$plan")"
within "passes" "$(jq .passes <<<"$out")" 3 13
is "$(guest_verdict g)" OK "the guest misses nothing"

run blockmig plan move "qmp:$tmp/g/qmp" "$tmp/a" --json
is "$(jq -c .forecast <<<"$out")" null "without a sample there is no forecast"
done_testing
