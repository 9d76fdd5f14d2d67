#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The disk of a running machine goes from a file to a unit of an iSCSI target that asks for a password, and back; the
# machine has a session of its own, and the password stands nowhere.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

secret=Xyzzy-4-plugh
mkdir "$tmp/a" "$tmp/scratch"
must qemu-img create -q -f qcow2 "$tmp/a/disk.qcow2" 64M
must qemu-io -f qcow2 -c 'write -P 7 16M 32M' "$tmp/a/disk.qcow2"
must dd if=/dev/urandom of="$tmp/unit1" bs=1M count=64 status=none
start_tgtd
make_target
must tgt --op new --mode account --user blockmig --password "$secret"
must tgt --op bind --mode account --tid 1 --user blockmig
add_lun 1 "$tmp/unit1"
unit=$REPLY
(umask 077 && printf 'user=blockmig\npassword=%s\n' "$secret" >"$tmp/credentials")
start_guest g --libvirt-style --disk "$tmp/a/disk.qcow2:qcow2" --append 'span=8M flush=64 log=1'
guest_wait_ready g
socket=qmp:$tmp/g/qmp

fails_with 3 "without the password" blockmig move "$socket" "$unit" --scratch "$tmp/scratch"
export BLOCKMIG_ISCSI_CREDENTIALS=$tmp/credentials

moved()
{
    report=$out
    is "$status" 0 "$1: the disk is moved" || diag "$err"
    diag "$err"
    diag "$(jq -c '{passes, pause_ms, pause_forecast_ms, duration_s}' <<<"$out")"
    is "$(files "$tmp/scratch")" "" "$1: nothing is left in --scratch"
    is "$(guest_verdict g)" OK "$1: the guest misses nothing"
    must guest_cmd g start
    is "$(qmp g '{"execute": "qom-list", "arguments": {"path": "/objects"}}' | grep -c secret)" 0 \
        "$1: no secret stays in the machine"
}

run blockmig move "$socket" "$unit" --scratch "$tmp/scratch" "${patient[@]}" --json
moved to
run_ok "to: the kept source is what the receipt says" blockmig verify "$tmp/a/disk.qcow2.blockmig-source" \
    --receipt "$(jq -r .receipt <<<"$report")"
is "$(qmp g '{"execute": "query-block"}' | jq -r '.[0].inserted.drv')" raw "to: the machine is on the unit, raw"

run blockmig move "$socket" "$tmp/a" -O qcow2 --scratch "$tmp/scratch" "${patient[@]}" --json
moved back
is "$(grep -rlaF "$secret" "$tmp" | grep -v "$tmp/credentials")" "" "the password is in no file"
name=$(cd "$tmp/a" && ls | grep -v source)
stop_guest g
like "$(host_verdict g 0 "$tmp/a/$name" qcow2)" '^OK [1-9]' "and the host agrees"
done_testing
