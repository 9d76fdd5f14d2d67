#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A libvirt daemon that is killed while it puts a machine on an overlay does not know afterwards that the machine is
# there.  The overlay is not removed, the definition is put right, and nothing is lost.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
emulator=$tmp/run-qemu
slow_syncs run-qemu /usr/bin/qemu-system-x86_64 "$tmp/slow"
two_hosts
must mkdir "$tmp/one/srv/other"
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 64M
must qemu-img create -q -f raw "$tmp/one/srv/store/data.img" 16M
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=300 span=8M flush=32 log=1'

has_open()
{
    on one bash -c 'ls -l $(pgrep -x qemu-system-x86 | sed "s|.*|/proc/&/fd|")' | grep -q "$1\$"
}

# forgotten LAYER COMMAND...: the daemon is killed when the hypervisor has that overlay and flushes or locks what lies below,
# which it does not end before.
forgotten()
{
    local layer=$1 pid
    shift
    echo "data.img.blockmig-$layer" >"$tmp/slow.hold"
    on one timeout 200 "$blockmig" "$@" -v >"$tmp/out" 2>"$tmp/err" 3>&- </dev/null &
    pid=$!
    until has_open "data.img.blockmig-$layer" || ! kill -0 $pid 2>/dev/null; do
        sleep 0.1
    done
    sleep 1.5 # until it is told to go over
    on one pkill -KILL -x libvirtd
    wait $pid
    rm "$tmp/slow.hold"
    sleep 1
    libvirt_up one
}

# believed: the file of the second disk, as libvirt has it
believed()
{
    on one virsh domblklist web "$@" | awk '$1 == "vdb" { print $2 }'
}

# goes_off: the guest has flushed everything.
goes_off()
{
    must domain_cmd one web stop
    must on one virsh -q destroy web
}

command=(migrate web blockmig://192.0.2.2 --delete-source)
forgotten 2 "${command[@]}"
is "$(believed)" /srv/store/data.img.blockmig-1 "libvirt believes the machine on the layer below"
check "the hypervisor is on the overlay" has_open data.img.blockmig-2
run on one timeout 200 "$blockmig" "${command[@]}"
is "$status" 3 "as long as it runs nothing is done" || diag "$err"
like "$err" "disk vda: the machine writes to /srv/store/disk.qcow2.blockmig-2, but libvirt.*on /srv/store/disk.qcow2.blockmig-1" \
    "and it is told"
is "$(believed --inactive)" /srv/store/data.img.blockmig-2 "the definition is put right"
goes_off
start_again one web
is "$(domain_verdict one web)" OK "so it can be started again"
must domain_cmd one web start
run on one timeout 200 "$blockmig" "${command[@]}"
is "$status" 0 "and the same command ends it" || diag "$err"
is "$(running_on web)$(defined_on web)$(files "$tmp/one/srv/store")" "two two " "on the other host"
is "$(domain_verdict two web)" OK "it misses nothing"
must domain_cmd two web start
migrate two web blockmig://192.0.2.1 --delete-source
is "$status" 0 "it comes back" || diag "$err"

# It goes off before anybody looks.
command=(move web /srv/other --delete-source)
forgotten 1 "${command[@]}"
is "$(believed)" /srv/store/data.img "libvirt knows of no overlay"
sleep 1
goes_off
run on one timeout 200 "$blockmig" "${command[@]}"
is "$status" 0 "off: what it wrote last is merged" || diag "$err"
is "$(files "$tmp/one/srv/store")$(files "$tmp/one/srv/other")" "data.img disk.qcow2 " "off: nothing else is left"
for disk in 0:disk.qcow2:qcow2 1:data.img:raw; do
    IFS=: read -r number name format <<<"$disk"
    must qemu-img convert -f "$format" -O raw "$tmp/one/srv/other/$name" "$tmp/view.raw"
    like "$("$guest_build/guest-check" "$tmp/web-console" "$number" "$tmp/view.raw" 2>&1)" '^OK' "off: $name misses nothing"
done

# It is started without what it wrote last, before anybody looks.  It had written nothing that was to be flushed then.
start_again one web
command=(move web /srv/store)
must domain_cmd one web stop
forgotten 1 "${command[@]}"
must domain_cmd one web start
sleep 1
goes_off
start_again one web
sleep 1
goes_off
run on one timeout 200 "$blockmig" "${command[@]}"
is "$status" 9 "started without it: nobody can tell what is right" || diag "$err"
like "$err" "/srv/other/disk.qcow2.blockmig-1 holds what the machine wrote.*on /srv/other/disk.qcow2, and that was written to later" \
    "which is told"
is "$(files "$tmp/one/srv/other")" "data.img data.img.blockmig-1 disk.qcow2 disk.qcow2.blockmig-1 " "everything is kept"
done_testing
