#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The link between two hosts becomes slow, before or in any phase of a migration: it comes to its end, also if the machine
# changes more memory than the link can carry, and nothing is lost.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool tc
need_free 2G
use_seed
two_hosts

# link_is RATE: in both directions.
link_is()
{
    local host
    for host in one two; do
        must on "$host" tc qdisc replace dev eth0 root tbf rate "$1" burst 256k latency 200ms
    done
}

link_is 1gbit
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1 memory=16M'
from=one to=two

# round METHOD RATE PHASE[+SECONDS]: that fast from then on.
round()
{
    local options rate=$2 phase=$3 pid result
    read -ra options <<<"$1"
    local say="$1, $2 from $3 on"
    link_is 1gbit
    on "$from" timeout 250 "$blockmig" migrate web "blockmig://$(address_of "$to")" --method="${options[@]}" \
        --delete-source --json -v >"$tmp/round.out" 2>"$tmp/round.err" 3>&- </dev/null &
    pid=$!
    wait_for 120 grep -q "^blockmig: ${phase%+*}" "$tmp/round.err"
    [ "$phase" = "${phase#*+}" ] || sleep "${phase#*+}"
    link_is "$rate"
    wait "$pid"
    result=$?
    is "$result" 0 "$say: it comes to its end" || diag "$(tail -n 5 "$tmp/round.err")"
    diag "$(jq -r '"pause \(.pause_ms) ms, \(.duration_s) s"' "$tmp/round.out")"
    is "$(running_on web)$(defined_on web)" "$to $to " "$say: the machine is there alone"
    is "$(domain_verdict "$to" web)" OK "$say: it misses nothing"
    must domain_cmd "$to" web start
    is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "disk.qcow2 " "$say: and nothing is left"
    phase=$from from=$to to=$phase
}

# sent HOST: bytes
sent()
{
    on "$1" ip -s -j link show eth0 | jq '.[0].stats64.tx.bytes'
}

# bytes_of HOW: of a migration at 100 Mbit/s.
bytes_of()
{
    local before where=$from
    before=$(sent "$where")
    round "live --compress=$1" 100mbit preflight
    REPLY=$(($(sent "$where") - before))
    diag "--compress=$1: $REPLY bytes"
}

# ---- any phase --------------------------------------------------------------------------------------

# There is no netem here, so no delay but that of the queue: 200 ms when it is full.
pick '50mbit 50mbit' '20mbit 10mbit'
read -r slow slower <<<"$REPLY"
cases=()
for phase in preflight base converge switchover+0.1 switchover+0.5 switchover+1 prove; do
    cases+=("live:$slow:$phase" "quick:$slow:$phase" "live:$slower:$phase")
done
some 1 "${cases[@]}"
for case in "${chosen[@]}"; do
    IFS=: read -r method rate phase <<<"$case"
    round "$method" "$rate" "$phase"
done

# ---- compressed -------------------------------------------------------------------------------------

bytes_of off
off=$REPLY
bytes_of auto
check "compressed by itself it is a tenth less at least" test $((10 * REPLY)) -lt $((9 * off))

# ---- a machine that is too busy ---------------------------------------------------------------------

if [ "${BLOCKMIG_LONG:-0}" = 1 ]; then
    must domain_cmd "$from" web 'dirty 4000'
    round "live --max-pause=2s" 20mbit preflight
fi
done_testing
