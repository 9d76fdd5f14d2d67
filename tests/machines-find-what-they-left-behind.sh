#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that comes back to a host finds the disks that it left there: only what changed meanwhile is sent, whatever
# those have become.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
two_hosts

size=$((64 << 20))
random_file "$tmp/noise" $size 7
must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$tmp/one/srv/store/disk.qcow2"
must cp "$tmp/noise" "$tmp/one/srv/store/data.img"
must rm "$tmp/noise"
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=100 span=4M flush=32 log=1'

# comes FROM TO ADDRESS OPTIONS...
comes()
{
    local from=$1 to=$2 address=$3
    shift 3
    migrate "$from" web "blockmig://$address" --compress=off --json -v "$@"
    is "$status" 0 "from $from to $to" || diag "$err"
    said=$err
    wires=$(jq -c '[.disks[].bytes_wire]' <<<"$out")
    seeded=$(jq -c '[.disks[].bytes_seeded]' <<<"$out")
    diag "sent $wires, there already $seeded"
    is "$(domain_verdict "$to" web)" OK "the guest misses nothing"
    must domain_cmd "$to" web start
}

# sent TEST: of how many bytes of each disk were sent, by jq
sent()
{
    jq --argjson size $size "all($1)" <<<"$wires"
}

comes one two 192.0.2.2
is "$(sent '. > $size')$seeded" "true[0,0]" "there all is sent"
left=$(sha256sum "$tmp"/one/srv/store/*.blockmig-source)
run on two "$blockmig" plan migrate web blockmig://192.0.2.1
like "$out" 'what .*/disk.qcow2.blockmig-source has' "a plan tells what is there"
comes two one 192.0.2.1
is "$(sent '. < $size / 4')" true "back, what changed"
is "$(jq --argjson size $size 'all(. > $size / 2)' <<<"$seeded")" true "and how much was not is told"
like "$said" 'vda: .* were in blockmig://192.0.2.1/store/disk.qcow2.blockmig-source already' "in words, too"
is "$(sha256sum "$tmp"/one/srv/store/*.blockmig-source)" "$left" "what was left there stays as it is"
is "$(domain_file one web)" /srv/store/disk.qcow2 "and the machine has disks of its own"

# What is there now: a disk of another size, and one of other content.
must rm "$tmp"/one/srv/store/*.blockmig-source
must qemu-img create -q -f qcow2 "$tmp/two/srv/store/disk.qcow2.blockmig-source" 32M
random_file "$tmp/two/srv/store/data.img.blockmig-source" $size 8
comes one two 192.0.2.2 --delete-source
like "$said" 'disk.qcow2.blockmig-source is there, but is no older copy of disk vda: it has 33554432 bytes' \
    "one of another size is passed over"
is "$(sent '. > $size')$seeded" "true[0,0]" "and of another disk's nothing is taken"

must rm "$tmp"/two/srv/store/*.blockmig-source
must sh -c "echo nothing >'$tmp/one/srv/store/disk.qcow2.blockmig-source'"
must ln -s disk.qcow2.blockmig-source "$tmp/one/srv/store/data.img.blockmig-source"
comes two one 192.0.2.1 --delete-source
like "$said" 'is no older copy of disk vda' "what is no image is passed over"
is "$(sent '. > $size')$seeded" "true[0,0]" "and so is what is no file"
done_testing
