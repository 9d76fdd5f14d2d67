#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The link is cut, for seconds or for good, the target's agent or either libvirtd is killed, in any phase of a
# migration: the machine runs on one host, loses nothing, and the same command ends it.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 2G
use_seed
two_hosts

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'
from=one to=two

# killed HOST PROGRAM: and gone
killed()
{
    on "$1" pkill -KILL -x "$2"
    while on "$1" pgrep -x "$2" >/dev/null; do
        sleep 0.1
    done
}

# happens WHAT, between the hosts or on one of them
happens()
{
    case $1 in
        a-short-cut)
            must on "$to" ip link set eth0 down
            sleep 3
            must on "$to" ip link set eth0 up
            ;;
        a-cut) must on "$to" ip link set eth0 down ;;
        the-agent)
            killed "$to" blockmigd
            host_agent "$to" "$(address_of "$to")"
            ;;
        libvirt-there)
            killed "$to" libvirtd
            libvirt_up "$to"
            ;;
        libvirt-here)
            killed "$from" libvirtd
            libvirt_up "$from"
            ;;
        all-anew)
            happens the-agent
            happens libvirt-there
            happens libvirt-here
            ;;
    esac
}

# is_over: on the target, with nothing left on the source.
is_over()
{
    [ "$(running_on web)" = "$([ -n "$died" ] || echo "$to ")" ] && [ "$(defined_on web)" = "$to " ] &&
        [ -z "$(files "$tmp/$from/srv/store")" ]
}

# is_in_order: it runs on one host, or its hypervisor died; then it is started anew, once it is on the target.
is_in_order()
{
    died=
    hypervisor_died "$from" web && died=yes
    [ -n "$died" ] || [ "$(running_on web)" = "one " ] || [ "$(running_on web)" = "two " ]
}

# round WHAT PHASE[+SECONDS]
round()
{
    local what=$1 phase=$2 pid n status options=()
    local say="$1 in $2"
    [ "$what" != all-anew ] || options=(--bandwidth 3MiB/s)
    on "$from" env BLOCKMIG_AGENT_TIMEOUT=5 timeout 200 "$blockmig" migrate web \
        "blockmig://$(address_of "$to")" --delete-source -v "${options[@]}" >"$tmp/round.out" 2>"$tmp/round.err" 3>&- </dev/null &
    pid=$!
    wait_for 120 grep -q "^blockmig: ${phase%+*}" "$tmp/round.err" || diag "$(cat "$tmp/round.err")"
    [ "$phase" = "${phase#*+}" ] || sleep "${phase#*+}"
    happens "$what"
    wait "$pid"
    status=$?
    check "$say: it comes to an end by itself" test $status -ne 124
    [ "$what" != all-anew ] || is "$status" 0 "$say: and that is the one that was wanted" || diag "$(cat "$tmp/round.err")"
    [ "$what" != a-cut ] || must on "$to" ip link set eth0 up
    check "$say: the machine is on one host" is_in_order
    [ -z "$died" ] || diag "QEMU died"
    for n in 1 2 3; do
        is_over && break
        migrate "$from" web "blockmig://$(address_of "$to")" --delete-source
    done
    check "$say: the same command ends it" is_over || diag "$err"
    is "$(defined_on web)" "$to " "$say: it is defined there alone"
    [ -z "$died" ] || start_again "$to" web
    is "$([ -n "$died" ] && crash_verdict "$to" web || domain_verdict "$to" web)" OK "$say: it misses nothing"
    must domain_cmd "$to" web start
    is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "disk.qcow2 " "$say: and nothing is left"
    n=$from from=$to to=$n
}

cases=()
for what in a-short-cut a-cut the-agent libvirt-there libvirt-here; do
    for phase in base converge switchover+0.3 switchover+0.8 switchover+1.1 prove settle; do
        cases+=("$what:$phase")
    done
done
some 1 "${cases[@]}"
# Who comes back in time is no reason for the machine to stand still, nor, while data are copied, for anything.
for case in the-agent:converge all-anew:base "${chosen[@]}"; do
    round "${case%%:*}" "${case#*:}"
done
done_testing
