#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What a move shows: phase, pass, what the machine writes, the forecast against the limit, then the pause as measured;
# on a terminal in one calm line, with -v a line for each step, with --json as numbers.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_tool python3 jq
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b" "$tmp/c"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 32M 32M' "$tmp/a/disk.qcow2"
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1 rate=300'
guest_wait_ready g
program=$builddir/tools/blockmig

run "$program" move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" -v --delete-source --bandwidth 16MiB/s
is "$status" 0 "a move with -v" || diag "$err"
rate='[0-9.]+ ([KMG]iB|bytes)/s'
like "$err" "^blockmig: base  pass 1  (machine writes $rate  )?vd0" "the copy of the base"
like "$err" "^blockmig: converge  pass 2  machine writes $rate  pause [0-9]+ of 30000 ms  shipped at $rate  shipped .* in [0-9]+ ms" \
    "each pass: what is written, forecast and limit, how fast it was shipped"
like "$err" '^blockmig: prove  paused [0-9.]+ ms' "after the switch the pause as measured"
like "$out" '^pause +[0-9.]+ ms \(forecast [0-9.]+, allowed 30000\), after [0-9]+ passes' "the report has all three"
pause=$(guest_pauses g | tail -n 1)
like "$out" "^pause +$(printf '%.1f' "$pause") ms" "and the pause is that of the machine's own events"

on_terminal 100 "$program" move "qmp:$tmp/g/qmp" "$tmp/c" "${patient[@]}" --delete-source --bandwidth 8MiB/s
is "$status" 0 "a move on a terminal" || diag "$out"
like "$out" "base  +[0-9]+%  .* left  pass 1  machine writes $rate" "one line for the copy, with the time that is left"
unlike "$out" '\\x1b' "no escape sequences"
is "$(python3 -c '
import ast, sys
text = "".join(ast.literal_eval(line.split(" ", 1)[1]) for line in sys.stdin)
lines = [part for part in text.replace("\n", "\r").split("\r") if part.startswith(("base", "converge", "prove"))]
print(max(map(len, lines)) < 100)' <<<"$out")" True "no line is longer than the terminal"

run "$program" move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json --delete-source
is "$status" 0 "a move with --json" || diag "$err"
is "$(jq -c '[.max_pause_ms, .dirty_rate >= 0, .ship_rate > 0, .pause_ms > 0, .pause_forecast_ms > 0, .frozen_ms, .forecast]' \
    <<<"$out")" '[30000,true,true,true,true,null,null]' "has the same as numbers"
is "$err" "" "and nothing else is said"
is "$(guest_verdict g)" OK "the guest misses nothing"
done_testing
