#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Machines of libvirt whose disks share a chain of images bring it along, layer by layer, or find it there.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool qemu-img qemu-io jq
need_free 2G
use_seed
two_hosts

one=$tmp/one/srv/store two=$tmp/two/srv/store
size=48M
make_pattern_image "$one/base.raw" raw $size 40
# What cannot be packed.
must dd if=/dev/urandom of="$one/base.raw" bs=1M seek=40 count=4 conv=notrunc status=none
make_pattern_image "$one/middle.qcow2" qcow2 $size 20 -b base.raw -F raw
make_pattern_image "$one/lower.qcow2" qcow2 $size 20 -b middle.qcow2 -F qcow2 -o extended_l2=on,cluster_size=128k
for disk in a b; do
    must qemu-img create -q -f qcow2 -b lower.qcow2 -F qcow2 "$one/$disk.qcow2"
done
# Zeros that hide what is below them.
must qemu-io -f qcow2 -c 'write -z 20M 1M' -c 'write -P 9 30M 64k' "$one/a.qcow2"
must qemu-img convert -f qcow2 -O raw "$one/a.qcow2" "$tmp/before.raw"
shape='rate=200 span=8M flush=32 log=1'
layers=(base.raw middle.qcow2 lower.qcow2)
start_domain one web --disk a.qcow2:qcow2 --disk b.qcow2:qcow2 --append "$shape"

# facts_of DIRECTORY: what tells whether its lower layers were touched.
facts_of()
{
    (cd "$1" && stat -c '%n %i %s %Y' "${layers[@]}" && sha256sum "${layers[@]}")
}
# strays HOST FILE: how many blocks of the disk show neither what they did at first nor what the guest has written.
strays()
{
    must on "$1" qemu-img convert -U -f qcow2 -O raw "$2" "$tmp/view.raw"
    python3 -c '
import sys
before, now = (open(name, "rb").read() for name in sys.argv[1:])
blocks = range(0, max(len(before), len(now)), 4096)
print(sum(now[at:at + 4096] != before[at:at + 4096] and now[at:at + 8] != b"BMBLOCK1" for at in blocks))' "$tmp/before.raw" "$tmp/view.raw"
}
# own_bytes FILE: what is in the image itself, and not below it.
own_bytes()
{
    qemu-img map -U --output=json "$1" | jq '[.[] | select(.depth == 0 and .data) | .length] | add'
}
# wire: bytes between the hosts so far.
wire()
{
    on two ip -s -j link show eth0 | jq '.[0].stats64 | .tx.bytes + .rx.bytes'
}
sums=$(facts_of "$one")

run on one "$blockmig" plan migrate --chain=keep web blockmig://192.0.2.2
is "$status" 0 "a plan" || diag "$err"
like "$out" "layer .*/base.raw: copied to blockmig://192.0.2.2/store/base.raw as raw" "names each layer"
is "$(files "$two")" "" "and changes nothing"

migrate one web blockmig://192.0.2.2 --chain=keep --json
is "$status" 0 "live: the machine goes with its chain" || diag "$err"
is "$(jq -c '[.method, (.disks | map(.disk))]' <<<"$out")" '["live",["base.raw","middle.qcow2","lower.qcow2","vda","vdb"]]' \
    "the layers that both disks stand on are reported once, the lowest first"
receipt=$(jq -r '.disks[] | select(.disk == "lower.qcow2").receipt' <<<"$out")
is "$(files "$two")" "a.qcow2 b.qcow2 base.raw lower.qcow2 middle.qcow2 " "all of them are there"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start
is "$(facts_of "$one")" "$sums" "the source's lower layers are as they were"
for layer in "${layers[@]}"; do
    is "$(content_hash "$two/$layer" "${layer##*[er].}")" "$(content_hash "$one/$layer" "${layer##*[er].}")" "$layer is the same"
done
is "$(qemu-img info -U --output=json "$two/a.qcow2" | jq -r '."backing-filename" + " " + ."backing-filename-format"')" "lower.qcow2 qcow2" \
    "the disk names what it stands on"
is "$(strays two "$two/a.qcow2")" 0 "what nobody has written to shows the same"
check "the disk has only what is its own" test "$(own_bytes "$two/a.qcow2")" -le $((10 << 20))
run on one "$blockmig" verify "/srv/store/lower.qcow2" --receipt "$receipt"
is "$status" 0 "a layer's receipt is of what it shows" || diag "$err"

must rm "$one"/*.blockmig-source
sums_there=$(facts_of "$two")
before=$(wire)
migrate two web blockmig://192.0.2.1 --chain=keep --dry-run
is "$status" 0 "what is there is proved" || diag "$err"
check "without being sent" test $(($(wire) - before)) -lt $((1 << 20))
migrate two web blockmig://192.0.2.1 --chain=keep --method=quick --delete-source --json
is "$status" 0 "quick: it comes back" || diag "$err"
is "$(jq -c '.disks | map(.disk)' <<<"$out")" '["vda","vdb"]' "nothing is copied that is there"
is "$(facts_of "$one")" "$sums" "and that is as it was"
is "$(files "$two")" "base.raw lower.qcow2 middle.qcow2 " "layers that others may stand on are not deleted"
is "$(facts_of "$two")" "$sums_there" "nor touched"
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start

# ---- what is there, and another -----------------------------------------------------------------------

must qemu-io -f qcow2 -c 'write -P 77 40M 4k' "$two/lower.qcow2"
for chain in keep shallow; do
    migrate one web blockmig://192.0.2.2 --chain=$chain
    is "$status" 3 "$chain: another image of that name is refused"
    like "$err" "store/lower.qcow2 is there already, and does not show what /srv/store/lower.qcow2 does" "and named"
done
must rm "$two"/*
must cp "$one/base.raw" "$one/middle.qcow2" "$two/"
migrate one web blockmig://192.0.2.2 --chain=shallow
is "$status" 3 "shallow: what is not there is refused"
like "$err" "store/lower.qcow2 is not there, and the disk stands on it" "and named"
is "$(running_on web)$(domain_file one web)$(files "$two")" "one /srv/store/a.qcow2base.raw middle.qcow2 " "nothing was changed"
sums_there=$(stat -c '%n %i %s %Y' "$two/base.raw" "$two/middle.qcow2")

# ---- killed, and given up -------------------------------------------------------------------------------

check "killed while the layers are copied" killed_in one base+0.5 migrate web blockmig://192.0.2.2 --chain=keep --bandwidth=8MiB/s
job cancel "$(on one "$blockmig" job list --json | jq -r '.jobs[0].job')"
is "$status" 0 "it is given up" || diag "$err"
is "$(running_on web)$(domain_file one web)$(files "$two")" "one /srv/store/a.qcow2base.raw middle.qcow2 " \
    "what was there before stays, and nothing else"
check "killed once more, when they are" killed_in one converge migrate web blockmig://192.0.2.2 --chain=keep
must qemu-img create -q -f qcow2 -b lower.qcow2 -F qcow2 "$one/c.qcow2"
domain_xml other --disk c.qcow2:qcow2 >"$tmp/one/srv/other.xml"
must on one virsh -q define /srv/other.xml
migrate one other blockmig://192.0.2.2 --chain=keep --dry-run
is "$status" 3 "a layer that may be removed again is nothing for another machine"
like "$err" "store/lower.qcow2.blockmig-job is there: a job that is not finished" "and it is told why"
migrate one web blockmig://192.0.2.2 --chain=keep --json
is "$status" 0 "the same command begins anew" || diag "$err"
is "$(jq -c '.disks | map(.disk)' <<<"$out")" '["lower.qcow2","vda","vdb"]' "and copies what is missing"
is "$(stat -c '%n %i %s %Y' "$two/base.raw" "$two/middle.qcow2")" "$sums_there" "onto what is there"
is "$(files "$two")" "a.qcow2 b.qcow2 base.raw lower.qcow2 middle.qcow2 " "and nothing else is left"
migrate one other blockmig://192.0.2.2 --chain=keep --dry-run
is "$status" 0 "then others may stand on them" || diag "$err"
is "$(domain_verdict two web)" OK "the guest misses nothing"
must domain_cmd two web start

# ---- off before the end -----------------------------------------------------------------------------------

must rm "$one"/[ab].qcow2.blockmig-source
check "killed when it has arrived" killed_in two prove migrate web blockmig://192.0.2.1 --chain=keep --delete-source
must on one virsh -q destroy web
migrate two web blockmig://192.0.2.1 --chain=keep --delete-source
is "$status" 0 "what a machine that went off wrote last is merged above its layers" || diag "$err"
is "$(strays one "$one/a.qcow2")" 0 "what nobody has written to shows the same"
is "$(facts_of "$one")" "$sums" "the layers are as they were"
start_again one web
is "$(domain_verdict one web)" OK "the guest misses nothing"
must domain_cmd one web start

# ---- on one host ----------------------------------------------------------------------------------------

new=$tmp/one/srv/new newer=$tmp/one/srv/newer
must mkdir "$new" "$newer"
run on one "$blockmig" move web /srv/new --chain=keep --delete-source
is "$status" 0 "a move takes the layers along" || diag "$err"
is "$(files "$new")" "a.qcow2 b.qcow2 base.raw lower.qcow2 middle.qcow2 " "they are there"
is "$(domain_verdict one web)/$(strays one "$new/a.qcow2")" OK/0 "the guest misses nothing"
must domain_cmd one web start
run on one "$blockmig" move web /srv/newer --chain=shallow --keep-failback=1h --json
is "$status" 0 "it goes on, with a way back" || diag "$err"
id=$(jq -r .job <<<"$out")
at_exit end_keeper_of "$id"
job failback "$id"
is "$status" 0 "and comes back" || diag "$err"
is "$(qemu-img info -U --output=json "$new/b.qcow2" | jq -r '."backing-filename"')" lower.qcow2 "onto its layers"
is "$(domain_verdict one web)/$(strays one "$new/a.qcow2")" OK/0 "the guest misses nothing"
must domain_cmd one web start
must rm "$newer"/*
run on one "$blockmig" move web /srv/newer --chain=shallow --delete-source
is "$status" 0 "or leaves them where they are" || diag "$err"
is "$(files "$newer")$(files "$new")" "a.qcow2 b.qcow2 base.raw lower.qcow2 middle.qcow2 " "they are"
is "$(qemu-img info -U --output=json "$newer/b.qcow2" | jq -r '."backing-filename"')" /srv/new/lower.qcow2 "and named"
is "$(domain_verdict one web)" OK "the guest misses nothing"

# ---- off --------------------------------------------------------------------------------------------------

must domain_cmd one web start
must on one virsh -q destroy web
must on one sh -c 'cd /srv/newer && for disk in a b; do qemu-img rebase -u -b lower.qcow2 -F qcow2 $disk.qcow2; done && mv /srv/new/* .'
sums_there=$(facts_of "$two")
migrate one web blockmig://192.0.2.2 --chain=shallow --json
is "$status" 0 "cold: one that is off finds its layers there" || diag "$err"
is "$(jq -r .method <<<"$out")" cold "by that method"
is "$(facts_of "$two")/$(strays two "$two/a.qcow2")" "$sums_there/0" "which are as they were"
start_again two web
is "$(domain_verdict two web)" OK "the guest misses nothing"

# ---- images in another directory ----------------------------------------------------------------------------

must on two virsh -q destroy web
must mkdir "$tmp/one/srv/images" "$tmp/two/srv/images"
must mv "$one/base.raw" "$tmp/one/srv/images/golden.raw"
must qemu-img create -q -u -f qcow2 -b /srv/images/golden.raw -F raw "$one/clone.qcow2" $size
must qemu-img convert -f raw -O raw "$tmp/one/srv/images/golden.raw" "$tmp/before.raw"
domain_xml clone --disk clone.qcow2:qcow2 --append "$shape" >"$tmp/one/srv/clone.xml"
must on one virsh -q define /srv/clone.xml
migrate one clone blockmig://192.0.2.2 --chain=keep --dry-run
is "$status" 3 "of a machine that is off, images in another directory are not followed"
like "$err" "golden.raw lies outside the allowed directories .*--allow-root" "and it is told how"
migrate one clone blockmig://192.0.2.2 --chain=keep --dry-run --allow-root=/srv/images
is "$status" 0 "if that is allowed, they are" || diag "$err"
start_again one clone
must cp "$tmp/one/srv/images/golden.raw" "$tmp/two/srv/images/"
migrate one clone blockmig://192.0.2.2 --chain=shallow
is "$status" 3 "shallow: what no datastore has is not there" || diag "$err"
must on two pkill -x blockmigd
wait_for 20 on two bash -c '! pgrep -x blockmigd'
printf '[datastore golden]\ndirectory=/srv/images\nread-only=true\n' >>"$tmp/two/srv/agent.conf"
start on two "$builddir/tools/blockmigd" --config /srv/agent.conf
wait_for 10 on two curl -sf --unix-socket /run/blockmig.sock http://agent/v1
migrate one clone blockmig://192.0.2.2/store --chain=shallow --delete-source --json
is "$status" 0 "what is there under the same name is found" || diag "$err"
is "$(qemu-img info -U --output=json "$two/clone.qcow2" | jq -r '."backing-filename"')" /srv/images/golden.raw "and used"
is "$(domain_verdict two clone)/$(strays two "$two/clone.qcow2")" OK/0 "the guest misses nothing"
must domain_cmd two clone start
migrate two clone blockmig://192.0.2.1/store --chain=keep --delete-source
is "$status" 0 "of one that runs, they are followed" || diag "$err"
is "$(domain_verdict one clone)/$(strays one "$one/clone.qcow2")" OK/0 "the guest misses nothing"
done_testing
