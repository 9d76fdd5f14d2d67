#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The file system of an image that is served runs full: the client is told, nothing wrong is shown or becomes durable, and
# when there is space again the next server shows what was flushed.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbdkit.sh"
need_loop
small_filesystem ext4 24M
mount=$REPLY
cd "$tmp" || exit

for format in qcow2 vhd vhdx vdi vmdk; do
    rm -f "$mount/child" base
    must "$blockmig" create -q -O "$format" base 64M
    must "$blockmig" create -q -O "$format" --parent base "$mount/child" --allow-root="$tmp"
    parameters=(allow-root="$tmp") options=(--allow-root="$tmp")
    [ "$format" != vdi ] || parameters=(parent=base) options=(--parent base)
    must truncate -s 64M model.raw
    must qemu-io -f raw -c "write -P 5 1M 4M" model.raw
    serve -- "$mount/child" "${parameters[@]}"
    server=$REPLY
    must qemu-io -f raw -c "write -P 5 1M 4M" -c flush "$uri"
    must fallocate -l "$(($(df --output=avail -B1 "$mount" | tail -1) - (3 << 20)))" "$mount/filler"
    run qemu-io -f raw -c "write -P 6 20M 8M" "$uri"
    like "$out$err" "write failed: No space left on device" "$format: a client is told that there is no space"
    run qemu-io -f raw -c "read -P 5 1M 4M" -c flush "$uri"
    is "$(grep -c 'read failed: Input/output error' <<<"$out")" 1 "and what is in doubt is not shown"
    stop_process "$server"
    must rm "$mount/filler"
    run_ok "what was flushed is there" blockmig verify -q -F raw "${options[@]}" "$mount/child" model.raw
    once 'qemu-io -f raw -c "write -P 6 20M 8M" "$uri"' -- "$mount/child" "${parameters[@]}"
    is "$status $err" "0 " "with space the next server can write"
    must qemu-io -f raw -c "write -P 6 20M 8M" model.raw
    run_ok "and it reads so" blockmig verify -q -F raw "${options[@]}" "$mount/child" model.raw
    rm -f model.raw
done
done_testing
