#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that dies, does not answer, is reset or gets another size of disk in the middle of a move: nothing is touched
# as long as it is not clear what it does, it is told, and afterwards nothing is lost and nothing left over.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 32M 32M' "$tmp/a/disk.qcow2"
socket=qmp:$tmp/g/qmp

guest_on()
{
    start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=16M flush=16 log=1'
    guest_wait_ready g "$1"
}

park()
{
    run blockmig move "$socket" "$tmp/b" --max-pause=1ms
    [ "$status" -eq 5 ] || not_ok "set-up: parked ($status $err)"
}

base_is_copied()
{
    [ -e "$1" ] && [ "$(stat -c %b "$1")" -gt 8192 ]
}

# back WHAT: the disk is where it was.
back()
{
    is "$(files "$tmp/a")/$(files "$tmp/b")" "disk.qcow2 /" "$1: nothing is left over"
}

# ---- it dies under the running move ---------------------------------------------------------------------

guest_on 1
"$builddir/tools/blockmig" move "$socket" "$tmp/b" "${patient[@]}" --bandwidth=8MiB/s >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
pid=$!
wait_for 20 base_is_copied "$tmp/b/disk.qcow2" || not_ok "the copy begins"
kill_guest g
wait "$pid"
status=$? err=$(cat "$tmp/err")
[ "$status" -eq 8 ] || [ "$status" -eq 9 ] && ok "a machine that is gone: exit status" || not_ok "a machine that is gone: $status $err"
like "$err" "job resume.*job cancel" "and what can be done is told"
like "$(files "$tmp/a")" "^disk.qcow2 disk.qcow2.blockmig-0 " "nothing on the source was touched"
like "$(host_verdict g 0 "$tmp/a/disk.qcow2" qcow2)" '^OK [1-9]' "the disk's name leads to every flushed write"
run_ok "without the machine the job is given up" blockmig job cancel "$(newest_job)"
back "given up"
like "$(host_verdict g 0 "$tmp/a/disk.qcow2" qcow2)" '^OK [1-9]' "and all flushed writes are in the one image"
image_clean "$tmp/a/disk.qcow2" "qemu-img check finds nothing"

# ---- it does not answer ---------------------------------------------------------------------------------

guest_on 2
park
before=$(files "$tmp/a")
must mv "$tmp/g/qmp" "$tmp/g/away"
for command in "job cancel $(newest_job)" "job resume $(newest_job)" "move $socket $tmp/b --max-pause=1ms"; do
    # shellcheck disable=SC2086 # words
    fails_with 8 "a machine that may still run: ${command%% /*}" blockmig $command
    like "$err" 'may still run.*Nothing was touched' "and that is told"
done
is "$(files "$tmp/a")" "$before" "nothing was touched"
must mv "$tmp/g/away" "$tmp/g/qmp"

# ---- it is reset ----------------------------------------------------------------------------------------

must qmp g '{"execute": "system_reset"}'
guest_wait_ready g 3
run blockmig job cancel "$(newest_job)"
is "$status" 0 "a machine that was reset: given up" || diag "$err"
back "reset"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start

# ---- its disk gets another size -------------------------------------------------------------------------

park
node=$(qmp g '{"execute": "query-block"}' | jq -r '.[0].inserted["node-name"]')
must qmp g "{\"execute\": \"block_resize\", \"arguments\": {\"node-name\": \"$node\", \"size\": 100663296}}"
run blockmig job resume "$(newest_job)"
is "$status" 4 "a disk that was resized: rolled back" || diag "$err"
like "$err" 'was resized from 67108864 to 100663296 bytes' "and why"
back "resized"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g
is "$(qemu-img info --output=json "$tmp/a/disk.qcow2" | jq '."virtual-size"')" 100663296 "the disk keeps its new size"
like "$(host_verdict g 0 "$tmp/a/disk.qcow2" qcow2)" '^OK [1-9]' "and the host agrees"
image_clean "$tmp/a/disk.qcow2" "qemu-img check finds nothing"
done_testing
