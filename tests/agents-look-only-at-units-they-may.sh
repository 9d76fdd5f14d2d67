#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What an agent tells of block devices, and for whom: those that its configuration has for machines, and nothing else.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
need_root
need_tool losetup

random_file "$tmp/one" 8M 1
random_file "$tmp/two" 8M 2
loop_device "$tmp/one"
mine=$REPLY
loop_device "$tmp/two"
other=$REPLY

# look NAME [ACT [FROM]]
look()
{
    ask POST /v1/machines/units -d "{\"name\": \"$1\", \"act\": \"${2:-look}\"${3:+, \"from\": \"$3\"}}"
}

local_agent
look "$mine"
is "$http" 409 "who takes no machines says nothing about devices"
must kill "$agent"
wait "$agent"

more_datastores="[machines]
directory=$tmp/sockets
units=$mine"
local_agent
look "$mine"
is "$http" 200 "who does describes the device"
is "$(jq -c '[.size, .local, .reserved]' <<<"$out")" '[8388608,false,false]' "its size"
like "$(jq -r .identity <<<"$out")" "block:7:.* of boot $(cat /proc/sys/kernel/random/boot_id)" "and what it is"
first=$(jq -r .samples <<<"$out")
is "${#first}" 2048 "and what is in it"
must dd if=/dev/zero "of=$mine" bs=4096 count=1 oflag=direct conv=notrunc
look "$mine"
like "$(jq -r .unreserved <<<"$out")" "not a SCSI disk" "a loop device has no reservations"
is "$(jq -r '.samples[32:]' <<<"$out")" "${first:32}" "a block that changes is seen"
check "as another one" test "$(jq -r '.samples[:32]' <<<"$out")" != "${first:0:32}"
for name in "$other" "$tmp/one" /dev/null "$(dirname "$mine")/../dev/${mine##*/}" nbd://127.0.0.1/x ''; do
    look "$name"
    check "'$name' is not looked at" test "$http" -ge 400
    unlike "$out" "samples" "and nothing is told of it"
done
for act in take register give-up; do
    look "$mine" $act
    is "$http" 409 "$act: a loop device cannot"
done
look "$mine" steal
is "$http" 400 "what it does not know it says so"
look "$mine" take 0
is "$http" 400 "nobody has the key 0"

# What the configuration has is a matter of names, and what they lead to one of devices.
must kill "$agent"
wait "$agent"
more_datastores="[machines]
directory=$tmp/sockets
units=$tmp/*"
must ln -s "$other" "$tmp/link"
local_agent
look "$tmp/one"
is "$http" 409 "a file is no unit, whatever the configuration says"
look "$tmp/link"
is "$(jq -r .size <<<"$out")" 8388608 "a name that leads to a device is one"
done_testing
