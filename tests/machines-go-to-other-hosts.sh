#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine of libvirt goes from one host to another, which share nothing, by every method, and back; the guest itself
# says that nothing is lost.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 2G
emulator=$tmp/run-qemu
slow_syncs run-qemu /usr/bin/qemu-system-x86_64 "$tmp/slow"
printf '#!/bin/sh\nexport LOST_WAKEUPS=%s LD_PRELOAD=%s\nexec %s "$@"\n' \
    "$tmp/lost-wakeups" "$builddir/tests/helpers/lost-wakeups.so" "$blockmig" >"$tmp/run-blockmig"
must chmod 755 "$tmp/run-blockmig"
blockmig=$tmp/run-blockmig
two_hosts

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 128M
must qemu-img create -q -f raw "$tmp/one/srv/store/data.img" 32M
# Sectors of 2048 bytes, and no whole number of pages.
random_file "$tmp/one/srv/store/setup.iso" 3147776 5
iso="<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/store/setup.iso'/>
    <target dev='hda' bus='ide'/><readonly/></disk>"
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --extra "$iso" \
    --append 'rate=400 span=24M flush=32 log=1'
must on one virsh -q autostart web
must on one virsh -q metadata web http://example.org/ --key note --set '<kept/>' --config --live

run on one "$blockmig" plan migrate web blockmig://192.0.2.2
is "$status" 0 "a plan"
like "$out" "method live" "says which method"
is "$(ls "$tmp/two/srv/store")" "" "and changes nothing"

migrate one web blockmig://192.0.2.2/store --json
is "$status" 0 "live: the machine is brought to the other host" || diag "$err"
is "$(jq -c '[.result, .method, .command, .pause_ms > 0, .disks[0].verified]' <<<"$out")" \
    '["done","live","migrate",true,"full"]' "and the report says how"
diag "pause $(jq .pause_ms <<<"$out") ms"
is "$(running_on web)$(defined_on web)" "two two " "it runs there, and is defined there alone"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start
is "$(domain_file two web --inactive)" /srv/store/disk.qcow2 "its definition there names the merged image"
is "$(domain_file two web)" /srv/store/disk.qcow2 "and so does the machine"
like "$(on two virsh dominfo web)" "Autostart: +enable" "it starts with that host"
like "$(on two virsh metadata web http://example.org/ --config)" "kept" "what others noted in its definition is there"
is "$(files "$tmp/two/srv/store")" "data.img disk.qcow2 setup.iso " "its files are there, and nothing else"
run cmp "$tmp/one/srv/store/setup.iso" "$tmp/two/srv/store/setup.iso"
is "$status" 0 "also what it only reads"
is "$(files "$tmp/one/srv/store")" "data.img.blockmig-source disk.qcow2.blockmig-source setup.iso " \
    "the source is kept under another name"
must qemu-img check -q "$tmp/one/srv/store/disk.qcow2.blockmig-source"

# What the guest wrote last gets into its images long after it stands still.
must touch "$tmp/slow"
migrate two web blockmig://192.0.2.1 --method=quick --delete-source --json
must rm "$tmp/slow"
is "$status" 0 "quick: it comes back" || diag "$err"
diag "pause $(jq .pause_ms <<<"$out") ms"
is "$(running_on web)$(defined_on web)" "one one " "and runs here"
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start
is "$(files "$tmp/two/srv/store")" "setup.iso " "the other host's disks are deleted"
must rm "$tmp"/one/srv/store/*.blockmig-source

# The guest has no driver for the button that libvirt presses.
migrate one web blockmig://192.0.2.2 --method=restart --delete-source --shutdown-timeout=2s
is "$status" 4 "restart: a guest that does not shut down" || diag "$err"
like "$err" "did not shut down within 2 s" "is told"
is "$(running_on web)$(defined_on web)" "one one " "and runs on"
is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "data.img disk.qcow2 setup.iso setup.iso " \
    "nothing is left of it"
boots=$(boots_of web)
on one timeout 200 "$blockmig" migrate web blockmig://192.0.2.2 --method=restart --delete-source -v \
    >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
wait_for 60 grep -q 'waiting for the guest' "$tmp/err"
domain_cmd one web poweroff >/dev/null
wait $!
is "$?" 0 "one that does starts on the other host" || diag "$(cat "$tmp/err")"
wait_ready web "$boots"
is "$(running_on web)$(defined_on web)" "two two " "and is there alone"
is "$(domain_verdict two web)" OK "the guest that was started misses nothing"
must on two virsh -q destroy web

migrate two web blockmig://192.0.2.1 --delete-source --json
is "$status" 0 "cold: one that is off goes, too" || diag "$err"
is "$(jq -r .method <<<"$out")" cold "by the method for that"
is "$(running_on web)$(defined_on web)" "one " "it is defined on the other host alone, and does not run"
start_again one web
is "$(domain_verdict one web)" OK "and when it is started it misses nothing"

# ---- both hosts see the disk ------------------------------------------------------------------------

must on one virsh -q destroy web
must on one virsh -q undefine web
must mkdir "$tmp/shared"
for host in one two; do
    must mkdir "$tmp/$host/srv/shared"
    must on "$host" mount --bind "$tmp/shared" /srv/shared
done
must on two pkill -x blockmigd
must sed -i 's/^\[datastore store\]/[datastore shared]/; s/^directory=.*/directory=\/srv\/shared/' "$tmp/two/srv/agent.conf"
start on two "$builddir/tools/blockmigd" --config /srv/agent.conf
must qemu-img create -q -f qcow2 "$tmp/shared/disk.qcow2" 64M
start_domain one both --disk /srv/shared/disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'
migrate one both blockmig://192.0.2.2 --json
is "$status" 0 "a disk that both hosts see" || diag "$err"
is "$(jq -c '[.method, (.disks | length)]' <<<"$out")" '["live",0]' "is not copied"
is "$(running_on both)$(defined_on both)" "two two " "its machine is on the other host alone"
is "$(domain_verdict two both)" OK "and misses nothing"
is "$(files "$tmp/shared")" "disk.qcow2 " "nothing else is in the datastore"
is "$(cat "$tmp/lost-wakeups" 2>/dev/null | wc -l)" 0 "no two threads wait for answers on one connection to libvirt"
done_testing
