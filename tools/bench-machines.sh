#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# bench-machines.sh RESULTS ROUNDS: the part of tools/bench that brings machines of libvirt to another host.  Called by
# bench_machines.py, with the environment of a test (tests/lib.sh); each measurement is a line of JSON in RESULTS.
#
# The hosts are those of tests/lib-libvirt.sh, the guest is that of tests/guest, which writes 4 KiB blocks at random
# places as fast as it can.  Pauses are what both libvirts' events tell, longest writes what the guest does.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool tc
results=$1 rounds=$2
LINK=125000000 # bytes per second: 1 Gbit/s

two_hosts
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 1G
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=0 span=64M'
from=one to=two

# uri_of HOST: of its libvirt, from outside.
uri_of()
{
    echo "qemu+unix:///system?socket=/proc/$(cat "$tmp/$1/pid")/root/run/libvirt/libvirt-sock"
}

for host in one two; do
    start virsh -c "$(uri_of $host)" event --event lifecycle --loop --timestamp >>"$tmp/$host-events"
done

# at_event HOST WORD: when its last event of that name came, in milliseconds.
at_event()
{
    local line
    line=$(grep "domain 'web': $2" "$tmp/$1-events" | tail -n 1)
    date -d "${line%%: event*}" +%s%3N
}

has_resumed()
{
    grep -q "domain 'web': Resumed" "$tmp/$to-events"
}

# sent: bytes on the link so far, in both directions.
sent()
{
    on one ip -s -j link show eth0 | jq '.[0].stats64 | .tx.bytes + .rx.bytes'
}

# measured WHAT COMMAND...: brings the machine from $from to $to; further fields of the line are in $fields.
measured()
{
    local what=$1 begun bytes longest
    shift
    sleep 1
    must domain_cmd "$from" web reset
    : >"$tmp/one-events"
    : >"$tmp/two-events"
    bytes=$(sent) begun=$(date +%s%N)
    must "$@"
    begun=$(($(date +%s%N) - begun)) bytes=$(($(sent) - bytes))
    wait_for 20 has_resumed || must false "$what: the machine goes on"
    longest=$(domain_cmd "$to" web stats | jq .longest_write_us)
    jq -nc --arg what "$what" --argjson pause $(($(at_event "$to" Resumed) - $(at_event "$from" Suspended))) \
        --argjson ns "$begun" --argjson bytes "$bytes" --argjson longest "$longest" --argjson more "${fields:-{\}}" \
        '{what: $what, pause_ms: $pause, longest_ms: ($longest / 1000), seconds: ($ns / 1e9), bytes: $bytes} + $more' >>"$results"
    local n=$from
    from=$to to=$n
}

by_blockmig()
{
    on "$from" timeout 300 "$blockmig" migrate web "blockmig://$(address_of "$to")" --delete-source --max-pause=10s "$@"
}

# Neither encrypted nor verified.
by_libvirt()
{
    local result
    qemu-img create -q -f qcow2 "$tmp/$to/srv/store/disk.qcow2" 1G
    timeout 300 virsh -q -c "$(uri_of "$from")" migrate --live --persistent --undefinesource --copy-storage-all \
        --copy-storage-synchronous-writes web "$(uri_of "$to")" "tcp://$(address_of "$to")"
    result=$?
    rm "$tmp/$from/srv/store/disk.qcow2"
    return $result
}

# state_of HOST: the bytes of its state, as libvirt saves it.
state_of()
{
    must on "$1" virsh -q save web /srv/state/saved
    stat -c %s "$tmp/$1/srv/state/saved"
    must on "$1" virsh -q restore /srv/state/saved
    rm "$tmp/$1/srv/state/saved"
}

for ((round = 0; round < rounds; round++)); do
    measured live by_blockmig
    measured libvirt by_libvirt
done
for ((round = 0; round < rounds; round++)); do
    measured quick by_blockmig --method=quick
done
for host in one two; do
    must on $host tc qdisc replace dev eth0 root tbf rate $((8 * LINK))bit burst 256k latency 20ms
done
for compress in off auto; do
    for ((round = 0; round < rounds; round++)); do
        fields="{\"ideal_ms\": $(($(state_of "$from") * 1000 / LINK))}" measured "quick-$compress" by_blockmig --method=quick --compress=$compress
    done
done
is "$(domain_verdict "$from" web)" OK "the guest misses nothing"
done_testing
