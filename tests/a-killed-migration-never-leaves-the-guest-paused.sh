#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whoever stops a guest and dies by SIGKILL: the guest runs again at once, on nodes that have all of its data.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 2G
use_seed

helper=$builddir/tests/helpers/guarded-pause
log=$tmp/guard.log
round=0

active_nodes()
{
    qmp a '{"execute": "query-block"}' |
        jq -r '[.[] | select(.qdev | test("vd[0-9]")) | [.qdev, .inserted["node-name"]]] | sort | .[][1]' | xargs
}

is_running()
{
    [ "$(qmp a '{"execute": "query-status"}' | jq .running)" = true ]
}

# A zombie that nobody collects is gone, too.
process_is_gone()
{
    local state
    state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 0
    [ -z "$state" ] || [ "$state" = Z ]
}

said()
{
    sed -n "s/^$1 //p" "$tmp/said"
}

# switch_over POINT: one try of the program, which dies there; leaves what it said in $tmp/said.
switch_over()
{
    round=$((round + 1))
    : >"$log"
    "$helper" "$tmp/a/qmp" "$log" "$tmp" "$round" "$1" >"$tmp/said" 2>"$tmp/said.err" 3>&- </dev/null &
    wait $! 2>/dev/null
    status=$?
    wait_for 10 process_is_gone "$(said guard)" || not_ok "$1: the guard ends"
}

# Milliseconds from the death to the first RESUME after it; nothing if there was none.
resumed_after()
{
    jq -r --argjson died "$(said died)" 'select(.event == "RESUME")
        | .timestamp.seconds * 1000000 + .timestamp.microseconds | select(. > $died)
        | (. - $died) / 1000' "$tmp/a/events" | head -n 1
}

is_resumed()
{
    [ -n "$(resumed_after)" ]
}

# resumed POINT: says so if nobody resumed it.  How long it took is told, and decides nothing: on a busy machine each
# answer of QEMU's monitor takes tens of milliseconds.
resumed()
{
    wait_for 10 is_resumed || { echo "$1: it was not resumed"; return; }
    resumed_after >>"$tmp/times"
    said round-trip >>"$tmp/trips"
}

# verdict: what the guest finds; it writes again afterwards.
verdict()
{
    guest_verdict a
    guest_cmd a start >/dev/null
}

# dies POINT SIDE RESUMED: SIDE is old, new or one; RESUMED yes if the guest must have been stopped.
dies()
{
    local side=apart nodes late
    switch_over "$1"
    is "$status" 137 "$1: the program was killed"
    nodes=$(active_nodes)
    [ "$nodes" = "$(said from)" ] && side=old
    [ "$nodes" = "$(said to)" ] && side=new
    [ "$2 $side" = "one apart" ] || [ "$2" != one ] || side=one
    is "$side ($(is_running && echo runs))" "$2 (runs)" "$1: the guest runs, on the $2 nodes"
    [ "$side" = "$2" ] || diag "nodes: $nodes; $(cat "$log")"
    [ "$3" = no ] && return
    late=$(resumed "$1")
    is "$late" "" "$1: it was resumed"
    [ -z "$late" ] || diag "$(cat "$log")"
}

for i in 0 1; do
    must qemu-img create -q -f raw "$tmp/disk$i.raw" 16M
done
start_guest a --libvirt-style --disk "$tmp/disk0.raw:raw" --disk "$tmp/disk1.raw:raw" --append 'span=8M flush=32 log=1'
guest_wait_ready a
sleep 0.5

# ---- at chosen moments --------------------------------------------------------------------------------

switch_over none
is "$status $(said failed)" "0 " "undisturbed, it moves"
is "$(active_nodes)" "$(said to)" "to the new nodes"
is "$(cat "$log")" "" "and the guard has nothing to say"

dies unarmed old no
dies armed old no
dies stop-half-sent old no
dies stop-sent old yes
dies stopped old yes
dies half-merged old yes
dies unsaid old yes
dies pivoted-before-merged old yes
is "$(verdict)" OK "before the merge, the guest misses nothing"
dies merged old yes
dies targets-open old yes
dies mirrors-sent old yes
dies mirrors-ready old yes
dies first-complete-sent old yes
dies first-pivoted old yes
is "$(verdict)" OK "in the middle of the pivot, the guest misses nothing"
dies second-complete-sent one yes
dies second-pivoted new yes
dies pivoted new yes
dies cont-half-sent new yes
dies cont-sent new yes
dies resumed new no
dies disarmed new no
is "$(verdict)" OK "after the pivot, the guest misses nothing"

# ---- a program that hangs; guards that die -----------------------------------------------------------

ulimit -c unlimited 2>/dev/null
cd "$tmp" || exit 99
switch_over crash
is "$status" 134 "crash: the program was aborted"
is "$(active_nodes) $(is_running && echo runs)" "$(said from) runs" "crash: the guest runs, on the old nodes"
is "$(resumed crash)" "" "crash: it was resumed"
is "$(find "$tmp" -name 'core*')" "" "crash: no core was written first"
dies stuck old yes
like "$(cat "$log")" "limit of the pause" "the log says why"

stops=$(grep -c '"STOP"' "$tmp/a/events")
for point in guard-killed guard-stopped; do
    switch_over "$point"
    is "$status" 3 "$point: the program does not go on"
    like "$(said failed)" "the pause guard" "$point: and says why"
    is "$(grep -c '"STOP"' "$tmp/a/events")" "$stops" "$point: the guest was not stopped"
done
switch_over guard-killed-in-pause
like "$(said failed)" "the pause guard" "a guard that dies in the pause is noticed"
is "$(active_nodes) $(is_running && echo runs)" "$(said to) runs" "and the guest runs on the new nodes"

# ---- at random moments --------------------------------------------------------------------------------

pick 4 300
rounds=$REPLY
late='' apart='' lost=''
for ((i = 0; i < rounds; i++)); do
    below 90000
    switch_over "random:$REPLY"
    died_after=$REPLY
    nodes=$(active_nodes)
    [ "$nodes" = "$(said from)" ] || [ "$nodes" = "$(said to)" ] || apart+="$died_after us: $nodes; "
    is_running || lost+="$died_after us: it is paused; "
    # Only if it was paused when the end came.
    grep -q 'runs again' "$log" && late+=$(resumed "$died_after us")
    [ $((i % 5)) -ne 4 ] || [ "$(verdict)" = OK ] || lost+="$died_after us: wrong blocks; "
done
is "$apart" "" "at $rounds random moments: all disks are on one side"
is "$lost" "" "at $rounds random moments: the guest runs, and misses nothing"
is "$late" "" "at $rounds random moments: it was resumed"
median=$(sort -g "$tmp/times" | awk '{ t[NR] = $1 } END { print t[int((NR + 1) / 2)] }')
diag "median $median ms (100 are the aim); slowest of $(wc -l <"$tmp/times"): $(sort -g "$tmp/times" | tail -n 1) ms after the death; the monitor's slowest answer:" \
    "$(sort -g "$tmp/trips" | tail -n 1) us"
is "$(verdict)" OK "the guest's last word"
done_testing
