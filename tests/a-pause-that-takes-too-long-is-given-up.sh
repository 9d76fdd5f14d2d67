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

# A file system on a medium that ends no write while the machine stands still.
plugin=$builddir/tests/helpers/waiting-medium.so
[ -e "$plugin" ] || skip_all "the nbdkit plugin was not built"
truncate -s 160M "$tmp/medium"
fuse_file "$plugin" file="$tmp/medium" qmp="$tmp/g/qmp-medium"
loop_device "$REPLY" --direct-io=on
must mkfs.ext4 -q -F "$REPLY"
mkdir "$tmp/b" "$tmp/a"
must mount "$REPLY" "$tmp/b"
at_exit unmount "$tmp/b"

must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'rate=50 span=8M flush=64 log=1' \
    -- -qmp "unix:$tmp/g/qmp-medium,server=on,wait=off"
guest_wait_ready g
must touch "$tmp/b/now-it-knows-the-machine"
must sync -f "$tmp/b"
must rm "$tmp/b/now-it-knows-the-machine"
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" --json --max-pause=3s
is "$status" 5 "the move is parked" || diag "$err"
like "$err" "more than twice the 3000 ms" "and the reason is told"
is "$(jq -r .result <<<"$out")" parked "the result says so"
job=$(jq -r .job <<<"$out")
# The medium would have waited for a minute.
is "$(guest_pauses g | awk 'NR == 1 { print ($1 < 25000) }')" 1 "the machine did not wait for the medium"
diag "pauses of $(guest_pauses g | tr '\n' ' ')ms"
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start
run_ok "the move is given up" blockmig job cancel "$job"
is "$(guest_verdict g)" OK "and the guest misses nothing"
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
