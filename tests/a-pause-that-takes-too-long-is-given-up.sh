#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The target becomes slow just when the machine stands still: at twice --max-pause the machine has its disk back and
# runs on where it was.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_fuse
need_loop
need_free 1G

# A file system on a medium that answers late while the machine stands still.
export MEDIUM=$tmp/medium EVENTS=$tmp/g/events
truncate -s 160M "$MEDIUM"
fuse_file eval get_size='stat -Lc %s "$MEDIUM"' can_write='exit 0' can_flush='exit 0' flush='exit 0' \
    pread='dd if="$MEDIUM" skip=$4 count=$3 iflag=count_bytes,skip_bytes,fullblock bs=1M status=none' \
    pwrite='! tail -n 1 "$EVENTS" 2>/dev/null | grep -q STOP || sleep 8
        dd of="$MEDIUM" seek=$4 oflag=seek_bytes iflag=fullblock bs=1M conv=notrunc status=none'
loop_device "$REPLY" --direct-io=on
must mkfs.ext4 -q -F "$REPLY"
mkdir "$tmp/b" "$tmp/a"
must mount "$REPLY" "$tmp/b"
at_exit unmount "$tmp/b"

must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'rate=50 span=8M flush=64 log=1'
guest_wait_ready g
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" --json --max-pause=3s
is "$status" 5 "the move is parked" || diag "$err"
like "$err" "more than twice the 3000 ms" "and the reason is told"
is "$(jq -r .result <<<"$out")" parked "the result says so"
# The medium would have needed a minute and more.
is "$(guest_pauses g | awk 'NR == 1 { print ($1 < 25000) }')" 1 "the machine did not wait for the medium"
diag "pauses of $(guest_pauses g | tr '\n' ' ')ms"
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start
run blockmig job cancel "$(jq -r .job <<<"$out")"
is "$(guest_verdict g)" OK "nor when the move is given up"
must guest_cmd g start
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" --json --max-pause=3s --on-busy=mirror --delete-source
is "$status" 0 "with --on-busy=mirror it goes on without a pause" || diag "$err"
is "$(jq -c '[.method, .on_busy, .pause_ms, .disks[0].bytes_in_pause]' <<<"$out")" '["mirror","mirror",null,0]' \
    "and the report says so"
like "$err" "the switch is made without a pause" "which is told when it is decided"
is "$(guest_verdict g)" OK "and it loses nothing"
stop_guest g
like "$(host_verdict g 0 "$tmp/b/disk.qcow2" qcow2)" '^OK [1-9]' "and the host agrees"
is "$(ls "$tmp/a")" "" "nothing is left of the source"
done_testing
