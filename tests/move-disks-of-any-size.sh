#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Disks of very different sizes, also such as are no multiple of a cluster or of a MiB, move together or one by one, and
# change their formats on the way.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G

sizes=(1099511627776 3146240 10485248 67108864)
formats=(qcow2 raw qcow2 raw)

# size_of IMAGE: as the guest sees it.
size_of()
{
    qemu-img info -U --output=json "$1" | jq '."virtual-size"'
}

mkdir "$tmp/a" "$tmp/b" "$tmp/c"
disks=()
for i in "${!sizes[@]}"; do
    must qemu-img create -q -f "${formats[i]}" "$tmp/a/disk$i" "${sizes[i]}"
    # The last sectors, which no cluster fills.
    must qemu-io -f "${formats[i]}" -c "write -P $((i + 1)) $((sizes[i] - 1536)) 1536" "$tmp/a/disk$i"
    disks+=(--disk "$tmp/a/disk$i:${formats[i]}")
done
# Nothing is written yet: the first blocks are holes, from which QEMU cannot learn what O_DIRECT wants.
start_guest g --libvirt-style "${disks[@]}" --append 'span=2M flush=64 log=1 hold=1'
guest_wait_ready g
run blockmig move "qmp:$tmp/g/qmp" "$tmp/b" "${patient[@]}" --json
is "$status" 0 "all are moved together"
[ "$status" -eq 0 ] || diag "$err"
cp /dev/stdin "$tmp/all.json" <<<"$out"
is "$(jq -c '[.disks[].virtual_size]' "$tmp/all.json")" "[$(IFS=,; echo "${sizes[*]}")]" "with their sizes"
must guest_cmd g start
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
must guest_cmd g start
run blockmig move "qmp:$tmp/g/qmp" "$tmp/c" "${patient[@]}" --json --disk vd1 -O qcow2
is "$status" 0 "one of them alone, which becomes qcow2"
run blockmig move "qmp:$tmp/g/qmp" "$tmp/c" "${patient[@]}" --json --disk vd2 -O raw
is "$status" 0 "and another, which becomes raw"
[ "$status" -eq 0 ] || diag "$err"
sleep 0.5
is "$(guest_verdict g)" OK "the guest misses nothing"
stop_guest g

for disk in "0 b qcow2" "1 c qcow2" "2 c raw" "3 b raw"; do
    read -r i where format <<<"$disk"
    image=$tmp/$where/disk$i
    is "$(size_of "$image")" "${sizes[i]}" "disk $i has its size"
    run qemu-io -r -f "$format" -c "read -P $((i + 1)) $((sizes[i] - 1536)) 1536" \
        -c "read -P 0 $((sizes[i] - 4608)) 3072" "$image"
    unlike "$out$err" 'failed|open' "disk $i has its end"
    [ "$i" = 0 ] || like "$(host_verdict g "$i" "$image" "$format")" '^OK [1-9]' "the host agrees for disk $i"
    [ "$format" = raw ] || image_clean "$image" "disk $i is clean"
done
is "$(($(allocated "$tmp/b/disk0") < 33554432))" 1 "the large one stays thin"
for i in 0 3; do
    run_ok "the kept source of disk $i is what its receipt says" blockmig verify -f "${formats[i]}" \
        "$tmp/a/disk$i.blockmig-source" --receipt "$(jq -r ".disks[$i].receipt" "$tmp/all.json")"
done
done_testing
