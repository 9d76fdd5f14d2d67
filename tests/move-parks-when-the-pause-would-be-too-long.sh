#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# --max-pause is a contract: a pause that would be longer is not begun.  The move is parked then, with all that it has
# done, and can be gone on with or given up; the same when the target is full.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_loop
need_free 1G

mkdir "$tmp/a" "$tmp/b" "$tmp/c"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 32M 32M' "$tmp/a/disk.qcow2"
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=16M flush=64 log=1'
guest_wait_ready g
socket=qmp:$tmp/g/qmp

# parked: the last run has parked its job.
parked()
{
    is "$status" 5 "$1: exit status" || diag "$err"
    is "$(jq -r .result <<<"$out")" parked "$1: the result says so"
    is "$(newest_job .state)" parked "$1: and the journal"
    like "$err" "job resume $(newest_job).*job cancel $(newest_job)" "$1: and what can be done is told"
    is "$(jq -r .pause_ms <<<"$out")" null "$1: no switch was begun"
    wait_for 5 is_running g && ok "$1: the machine runs" || not_ok "$1: the machine runs"
    like "$(files "$tmp/a")" 'disk.qcow2.blockmig-0' "$1: on its overlays"
}

run blockmig move "$socket" "$tmp/b" --json --max-pause=1ms
parked "a pause of 1 ms is not possible"
like "$err" 'a pause would take [0-9]+ ms, and --max-pause allows 1 ms' "and that is said with both figures"
is "$(jq -r '.pause_forecast_ms > 1' <<<"$out")" true "the forecast is told"
like "$(files "$tmp/b")" '^disk.qcow2 ' "what was copied is kept"

fails_with 3 "another target for the same machine is refused" blockmig move "$socket" "$tmp/c" --max-pause=1ms
like "$err" "job resume $(newest_job).*job cancel $(newest_job)" "and the two ways on are told"
run blockmig plan move "$socket" "$tmp/b" --max-pause=1ms
is "$status" 0 "a plan of the same command"
like "$out" "goes on with job $(newest_job)" "says that it goes on with the job"

run blockmig job cancel "$(newest_job)"
is "$status" 0 "the job is given up" || diag "$err"
is "$(newest_job .state)" rolled-back "the journal knows"
is "$(cd "$tmp" && ls a b | tr '\n' ' ')" "a: disk.qcow2  b: " "nothing is left over"
fails_with 3 "what was given up cannot be resumed" blockmig job resume "$(newest_job)"

run blockmig move "$socket" "$tmp/b" --json --max-pause=1ms
parked "parked again"
job=$(newest_job)
run blockmig job resume "$job" --json
parked "resumed with the same limit"
is "$(newest_job)" "$job" "it is the same job"
run blockmig move "$socket" "$tmp/b" --json "${patient[@]}"
is "$status" 0 "with another limit it goes on" || diag "$err"
is "$(newest_job)" "$job" "as the same job"
is "$(jq -r .resumed <<<"$out")" true "which was resumed"
is "$(jq -r '.disks[0].bytes_read < 100 * 1048576' <<<"$out")" true "and did not read everything again"
run_ok "the kept source is what the receipt says" blockmig verify "$tmp/a/disk.qcow2.blockmig-source" \
    --receipt "$(jq -r .receipt <<<"$out")"
is "$(files "$tmp/a")$(files "$tmp/b")" "disk.qcow2.blockmig-source disk.qcow2 " "nothing else is left"
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start

# ---- the target is full -------------------------------------------------------------------------------

small_filesystem ext4 256M
small=$REPLY
from=$tmp/b
rm "$tmp/a"/*

base_is_copied()
{
    [ -e "$1" ] && [ "$(stat -c %b "$1")" -gt 8192 ]
}

"$builddir/tools/blockmig" move "$socket" "$small" --json "${patient[@]}" --bandwidth=8MiB/s \
    >"$tmp/full.json" 2>"$tmp/full.err" 3>&- </dev/null &
pid=$!
wait_for 20 base_is_copied "$small/disk.qcow2" || not_ok "the copy begins"
dd if=/dev/zero of="$small/filler" bs=1M status=none
wait "$pid"
status=$? out=$(cat "$tmp/full.json") err=$(cat "$tmp/full.err")
is "$status" 5 "a full target parks the move" || diag "$err"
is "$(newest_job .state)" parked "and the journal knows"
like "$(files "$from")" 'disk.qcow2.blockmig-0' "the machine stays on its overlays"
wait_for 5 is_running g && ok "and runs" || not_ok "and runs"
rm -f "$small/filler"
run blockmig job resume --json
is "$status" 0 "with room again it goes on" || diag "$err"
is "$(jq -r '.resumed' <<<"$out")" true "from where it was"
is "$(files "$from")$(ls "$small" | grep -v lost | tr '\n' ' ')" "disk.qcow2.blockmig-source disk.qcow2 " "nothing is left over"
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
like "$(host_verdict g 0 "$small/disk.qcow2" qcow2)" '^OK [1-9]' "and the host agrees"
image_clean "$small/disk.qcow2" "qemu-img check finds nothing"
done_testing
