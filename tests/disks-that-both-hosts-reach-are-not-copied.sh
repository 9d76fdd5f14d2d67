#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine whose disks are on a block device, an iSCSI unit and an NBD export goes to another host that reaches the
# same ones, and that is proved; by the name alone nothing is the same.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_tool tgtd tgtadm qemu-nbd losetup
need_free 2G
units='/dev/loop*;iscsi://192.0.2.*;nbd://*'
two_hosts

# ---- what they reach ------------------------------------------------------------------------------------

for name in lun unit export; do
    must truncate -s 48M "$tmp/$name"
done
loop_device "$tmp/lun"
device=$REPLY
export TGT_IPC_SOCKET=$tmp/tgtd
portal=192.0.2.1:3260
start on one tgtd -f -C 1 --iscsi "portal=$portal"
wait_for 20 tgt --op show --mode sys || must false "tgtd"
make_target
add_lun 1 "$tmp/unit"
start on two qemu-nbd -t --shared=0 -f raw -x data -b 192.0.2.2 -p 10809 --cache=none "$tmp/export"
wait_for 20 on one qemu-img info nbd://192.0.2.2/data || must false "qemu-nbd"

block="block:<source dev='$device'/>"
iscsi="network:<source protocol='iscsi' name='$iqn/1'><host name='192.0.2.1' port='3260'/></source>"
nbd="network:<source protocol='nbd' name='data'><host name='192.0.2.2' port='10809'/></source>"

start_domain one web --on "$block" --on "$iscsi" --on "$nbd" --append 'rate=200 span=16M flush=32 log=1'

run on one "$blockmig" plan migrate web blockmig://192.0.2.2
is "$status" 0 "a plan" || diag "$err"
like "$out" "disk vda: $device is the same for both hosts \(block:7:" "knows a device of the same kernel"
like "$out" "disk vdb: iscsi://192.0.2.1:3260/$iqn/1 is the same .* at 192.0.2.1 port 3260" "a unit of a target"
like "$out" "disk vdc: nbd://192.0.2.2:10809/data is the same .* at 192.0.2.2 port 10809" "and an export"
like "$out" "method live: .*none is copied" "and copies none of them"
like "$out" "method san was passed over: .*cannot be reserved" "san is for what can be reserved"

migrate one web blockmig://192.0.2.2 --json
is "$status" 0 "live: the machine is brought to the other host" || diag "$err"
is "$(jq -c '[.method, (.disks | length)]' <<<"$out")" '["live",0]' "without a copy"
diag "pause $(jq .pause_ms <<<"$out") ms"
is "$(running_on web)$(defined_on web)" "two two " "it is there alone"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start
migrate two web blockmig://192.0.2.1 --method=quick --json
is "$status" 0 "quick: it comes back" || diag "$err"
is "$(running_on web)$(defined_on web)" "one one " "and is there alone"
is "$(domain_verdict one web)" OK "the guest misses nothing"
is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "" "nothing was copied anywhere"
on one virsh -q destroy web
must on one virsh -q undefine web

# ---- what only looks the same -----------------------------------------------------------------------------

# refused WORDS WHAT: machine "off" is not brought anywhere.
refused()
{
    migrate one off blockmig://192.0.2.2
    is "$status" 3 "$2: refused"
    like "$err" "$1" "with the reason"
    is "$(defined_on off)" "one " "and it stays"
}

# define_off ARGUMENTS OF domain_xml
define_off()
{
    on one virsh -q undefine off
    domain_xml off "$@" >"$tmp/one/srv/off.xml"
    must on one virsh -q define /srv/off.xml
}

must cp "$tmp/lun" "$tmp/replica"
loop_device "$tmp/replica"
must on two mount --bind "$REPLY" "$device"
define_off --on "$block"
refused 'another one there.*--scratch' "a replica under the same name"
must on two umount "$device"
must chmod 600 "$tmp/two/srv/agent.conf"
must sed -i 's/^units=.*/units=nbd:*/' "$tmp/two/srv/agent.conf"
must on two pkill -HUP -x blockmigd
wait_for 20 eval '! on one "$blockmig" plan migrate off blockmig://192.0.2.2 >/dev/null 2>&1'
refused "is none of the units" "a device that the agent may not use"

for host in one two; do
    start on "$host" qemu-nbd -t --shared=0 -f raw -x same -b 127.0.0.1 -p 10810 "$tmp/export"
    wait_for 20 on "$host" qemu-img info nbd://127.0.0.1:10810/same || must false "qemu-nbd on $host"
done
define_off --on "network:<source protocol='nbd' name='same'><host name='127.0.0.1' port='10810'/></source>"
refused "127.0.0.1 port 10810 is an address that both hosts have" "an address that means each host itself"
define_off --on "network:<source protocol='nbd' name='x'><host transport='unix' socket='/run/x'/></source>"
refused "by a socket of its host" "a socket"
done_testing
