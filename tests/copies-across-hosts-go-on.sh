#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Agents and clients that are killed, links that are cut and agents that lie: the copy goes on or stops in order,
# and what has the name is right.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"
use_seed

local_agent
mixed_file "$tmp/disk.raw" 200M 3
size=$((200 << 20))

# copy_in_background NAME OPTIONS...: sets pid.
copy_in_background()
{
    local name=$1
    shift
    "$builddir/tools/blockmig" copy -q --bandwidth=40MiB/s "$@" -O qcow2 "$tmp/disk.raw" "$store/$name" 3>&- </dev/null 2>"$tmp/$name.err" &
    pid=$!
    wait_for 20 test -s "$tmp/store/$name.blockmig-part"
}

right()
{
    same_content "$tmp/disk.raw" "$tmp/store/$1" "$2" -f raw -F qcow2
    check "$2, whole" qemu-img check -q -f qcow2 "$tmp/store/$1"
}

# resumed NAME: goes on from where it was, and comes out right.
resumed()
{
    run_ok "$1: it goes on" blockmig job resume --json
    is "$(jq .resumed <<<"$out")" true "$1: from where it was"
    right "$1" "$1: right"
}

# ---- the agent is killed and started again: nobody has to do anything -------------------------------

copy_in_background agent.qcow2
for i in 1 2 3; do
    sleep "0.$((RANDOM % 8 + 1))"
    kill -KILL "$agent"
    wait "$agent" 2>/dev/null
    local_agent
done
wait $pid
is $? 0 "a copy whose agent was killed three times comes to its end"
right agent.qcow2 "what it wrote is right"

# ---- it stays away ----------------------------------------------------------------------------------

export BLOCKMIG_AGENT_TIMEOUT=2
copy_in_background away.qcow2 --bandwidth=15MiB/s
wait_for 30 has_checkpoint "$store/away.qcow2"
kill -KILL "$agent"
wait "$agent" 2>/dev/null
wait $pid
is $? 8 "an agent that stays away ends the copy"
like "$(cat "$tmp/away.qcow2.err")" "job resume" "which says how to go on"
check "nothing has the name" test ! -e "$tmp/store/away.qcow2"
local_agent
resumed away.qcow2
unset BLOCKMIG_AGENT_TIMEOUT

# ---- the client is killed ---------------------------------------------------------------------------

pick 2 40
rounds=$REPLY failures=0
for ((i = 0; i < rounds; i++)); do
    copy_in_background client.qcow2
    sleep "$((RANDOM % 4)).$((RANDOM % 10))"
    kill -KILL $pid
    wait $pid 2>/dev/null
    run blockmig copy -q -O qcow2 "$tmp/disk.raw" "$store/client.qcow2"
    [ "$status" -eq 0 ] && qemu-img compare -q -f raw -F qcow2 "$tmp/disk.raw" "$tmp/store/client.qcow2" || failures=$((failures + 1))
    rm -f "$tmp/store/client.qcow2"
    run blockmig job list
done
is "$failures" 0 "clients that are killed at any moment go on at once, $rounds times"
is "$(find "$tmp/store" -name "*part")" "" "nothing is left of them"

# ---- the link is cut --------------------------------------------------------------------------------

need_root
need_tool ip
far=blockmig-far-$$ link=bm$$
must ip netns add "$far"
at_exit ip netns del "$far"
must ip link add "$link" type veth peer name eth0 netns "$far"
at_exit ip link del "$link"
must ip addr add 10.231.77.1/30 dev "$link"
must ip link set "$link" up
must ip -n "$far" addr add 10.231.77.2/30 dev eth0
must ip -n "$far" link set eth0 up
must ip -n "$far" link set lo up
authority "$tmp/ca"
server_certificate "$tmp/server" 10.231.77.2
client_certificate "$tmp/client" client
cat >"$tmp/far.conf" <<END
[agent]
listen=10.231.77.2:16600
tls-directory=$tmp/server
allow=client
[datastore store]
directory=$tmp/store
END
start ip netns exec "$far" "$builddir/tools/blockmigd" --config "$tmp/far.conf"
wait_for 10 eval ': </dev/tcp/10.231.77.2/16600'
export BLOCKMIG_AGENT_TLS=$tmp/client
local_store=$store store=blockmig://10.231.77.2/store
copy_in_background cut.qcow2
sleep 1
must ip link set "$link" down
sleep 4
check "while the link is cut nothing is given up" kill -0 $pid
must ip link set "$link" up
must ip addr replace 10.231.77.1/30 dev "$link"
wait $pid
is $? 0 "when it is there again the copy goes on"
right cut.qcow2 "what came over it is right"

export BLOCKMIG_AGENT_TIMEOUT=3
copy_in_background lost.qcow2 --bandwidth=15MiB/s
wait_for 30 has_checkpoint "$store/lost.qcow2"
must ip link set "$link" down
wait $pid
is $? 8 "a link that stays away ends the copy"
must ip link set "$link" up
must ip addr replace 10.231.77.1/30 dev "$link"
unset BLOCKMIG_AGENT_TIMEOUT
wait_for 30 eval ': </dev/tcp/10.231.77.2/16600'
wait_for 40 qemu-img check -q -f qcow2 "$tmp/store/lost.qcow2.blockmig-part"
is $? 0 "its agent lets go of the file"
resumed lost.qcow2
store=$local_store

# ---- agents that lie --------------------------------------------------------------------------------

must cp "$tmp/disk.raw" "$tmp/store/source.raw"

# lie KIND
lie()
{
    start "$srcdir/tests/helpers/lying-agent.py" "$tmp/liar.sock" "$tmp/agent.sock" "$1"
    liar=$REPLY
    wait_for 10 curl -sf --unix-socket "$tmp/liar.sock" http://agent/v1
    export BLOCKMIG_AGENT_SOCKET=$tmp/liar.sock
}

lie digests
fails_with 6 "a medium that has other bytes" blockmig copy -q "$tmp/disk.raw" "$store/lie.raw"
like "$err" "another digest" "is found by its digests"
check "and what is wrong gets no name" test ! -e "$tmp/store/lie.raw"
# Pieces that are small go several in one request.
must truncate -s 8M "$tmp/scattered.raw"
for ((at = 0; at < 1600; at += 16)); do
    dd if="$tmp/disk.raw" of="$tmp/scattered.raw" bs=4k count=1 skip=$at seek=$at conv=notrunc status=none
done
fails_with 6 "and in small pieces" blockmig copy -q "$tmp/scattered.raw" "$store/scattered.raw"
like "$err" "another digest" "too"
run blockmig job cancel
stop_process "$liar"
export BLOCKMIG_AGENT_SOCKET=$tmp/agent.sock
check "who does not lie gets all of them" blockmig copy -q --restart "$tmp/scattered.raw" "$store/scattered.raw"
check "as they are" cmp "$tmp/scattered.raw" "$tmp/store/scattered.raw"
for kind in content short garbage size endless; do
    lie $kind
    run timeout 60 "$builddir/tools/blockmig" copy -q --restart "$store/source.raw" "$tmp/lie.raw"
    check "$kind: the copy fails ($status: ${err:0:150})" test "$status" -ne 0 -a "$status" -lt 100
    check "$kind: and there is none" test ! -e "$tmp/lie.raw"
    stop_process "$liar"
done
done_testing
