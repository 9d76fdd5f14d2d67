#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Whatever happens to blockmig, the agents or libvirt while a machine goes to another host: it loses nothing, never
# runs on both, and the same command brings it there in the end.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 2G
two_hosts

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'

# ---- what is refused --------------------------------------------------------------------------------

# refused WHAT WORDS ARGUMENTS...
refused()
{
    local what=$1 words=$2
    shift 2
    migrate one "$@"
    is "$status" 3 "$what: refused" || diag "$err"
    like "$err" "$words" "with the reason"
}

refused "a machine that is not there" 'no machine called "nobody"' nobody blockmig://192.0.2.2
refused "a datastore that is not there" "no datastore 'attic'" web blockmig://192.0.2.2/attic
refused "this host" "is this host" web blockmig://192.0.2.1
must mkdir "$tmp/one/srv/stranger"
ca=$tmp/other-ca authority "$tmp/other-ca"
ca=$tmp/other-ca client_certificate "$tmp/one/srv/stranger" mallory
run on one env BLOCKMIG_AGENT_TLS=/srv/stranger "$blockmig" migrate web blockmig://192.0.2.2
check "a certificate of another authority is not let in" test "$status" -ne 0
domain_xml web --disk other.qcow2:qcow2 >"$tmp/two/srv/same.xml"
must on two virsh -q define /srv/same.xml
refused "a name that is taken" "a machine called \"web\" already" web blockmig://192.0.2.2
must on two virsh -q undefine web
must touch "$tmp/two/srv/store/disk.qcow2"
refused "a file that is there" "disk.qcow2 exists already" web blockmig://192.0.2.2
must rm "$tmp/two/srv/store/disk.qcow2"
is "$(running_on web)$(domain_file one web)" "one /srv/store/disk.qcow2" "the machine was left alone"
is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "disk.qcow2 " "and nothing was left"

# ---- a target that fails ----------------------------------------------------------------------------

on one env BLOCKMIG_AGENT_TIMEOUT=2 timeout 100 "$blockmig" migrate web blockmig://192.0.2.2 --bandwidth=8MiB/s -v \
    >/dev/null 2>"$tmp/cut.err" 3>&- </dev/null &
wait_for 60 grep -q '^blockmig: base  vda' "$tmp/cut.err"
on two pkill -KILL -x blockmigd
wait $!
status=$?
check "an agent that is killed ends the migration" test "$status" -ne 0 || diag "$(cat "$tmp/cut.err")"
is "$(running_on web)$(domain_file one web)" "one /srv/store/disk.qcow2" "the machine runs on its own disk again"
is "$(domain_verdict one web)" OK "and misses nothing"
must domain_cmd one web start
host_agent two 192.0.2.2
must rm -f "$tmp"/two/srv/store/*

# ---- blockmig is killed -----------------------------------------------------------------------------

# has_died HOST: QEMU 7.2 may do that when a live migration is ended (HACKING).
has_died()
{
    [ -z "$(running_on web)" ] &&
        on "$1" tail -n 5 /var/log/libvirt/qemu/web.log | grep -E 'reason=crashed|corrupted|free\(\)|malloc\(\)|Assertion'
}

# as_after_a_crash FROM TO: the machine that died goes over, and has lost nothing that was flushed.
as_after_a_crash()
{
    diag "the hypervisor died of the end of the migration"
    echo died >>"$tmp/deaths"
    [ "$(wc -l <"$tmp/deaths")" -le 2 ] || return
    [ "$(defined_on web)" = "$2 " ] || migrate "$1" web "blockmig://$(address_of "$2")" --delete-source
    must on "$2" virsh -q start web
    [ "$status" -ne 0 ] || [ "$(crash_verdict "$2" web)" = OK ] || status=1
}

# round PHASE FROM TO [OPTION]...: killed in that phase, then the same command.
round()
{
    local phase=$1 from=$2 to=$3 address
    shift 3
    address=$(address_of "$to")
    killed_in "$from" "$phase" migrate web "blockmig://$address" --delete-source "$@" || diag "not killed in time"
    local where
    where=$(running_on web)
    check "$phase $*: killed there, it does not run on both" test "$where" != "one two "
    migrate "$from" web "blockmig://$address" --delete-source "$@"
    ! has_died "$from" >&2 || as_after_a_crash "$from" "$to"
    is "$status" 0 "$phase $*: the same command brings it to the other host" || diag "$err"
    is "$(running_on web)$(defined_on web)" "$to $to " "$phase $*: and there alone"
    is "$(domain_verdict "$to" web)" OK "$phase $*: it misses nothing"
    must domain_cmd "$to" web start
    is "$(domain_file "$to" web)$(domain_file "$to" web --inactive)" /srv/store/disk.qcow2/srv/store/disk.qcow2 \
        "$phase $*: it runs from the merged image"
    is "$(files "$tmp/$from/srv/store")$(files "$tmp/$to/srv/store")" "disk.qcow2 " "$phase $*: and nothing is left"
}

# A kill that comes behind the last word leaves nothing to be brought anywhere.
around_end=settle
[ "${BLOCKMIG_LONG:-0}" != 1 ] || around_end=cleanup

use_seed
from=one to=two
some 4 base converge switchover prove settle 'switchover --method=quick' $around_end
for case in "${chosen[@]}"; do
    read -r phase option <<<"$case"
    round "$phase" $from $to $option
    phase=$from from=$to to=$phase
done

# At random moments from the switch on: some of them come too late.
random_rounds()
{
    local count=$1 option phase n
    for n in $(seq "$count"); do
        option=
        [ $((RANDOM % 3)) -ne 0 ] || option=--method=quick
        phase=switchover+0.$(printf %03d $((RANDOM % 1000)))
        if killed_in "$from" "$phase" migrate web "blockmig://$(address_of $to)" --delete-source $option; then
            check "$phase $option: killed there, it does not run on both" test "$(running_on web)" != "one two "
            migrate "$from" web "blockmig://$(address_of $to)" --delete-source $option
            ! has_died "$from" >&2 || as_after_a_crash "$from" "$to"
            # What was killed behind its last word is not there any more.
            [ "$status" -ne 3 ] || [ "$(defined_on web)" != "$to " ] || status=0
            is "$status" 0 "$phase $option: the same command brings it to the other host"
            [ "$status" -eq 0 ] || diag "$err"
        fi
        is "$(running_on web)$(defined_on web)" "$to $to " "$phase $option: it is there alone"
        is "$(domain_verdict "$to" web)" OK "$phase $option: it misses nothing"
        must domain_cmd "$to" web start
        is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "disk.qcow2 " \
            "$phase $option: and nothing is left"
        n=$from from=$to to=$n
    done
}
pick 1 60
random_rounds "$REPLY"

# ---- it is given up ---------------------------------------------------------------------------------

killed_in $from converge migrate web "blockmig://$(address_of $to)"
job=$(on $from "$blockmig" job list --json | jq -r '.jobs[0].job')
run on $from "$blockmig" job cancel "$job"
is "$status" 0 "a killed job is given up" || diag "$err"
is "$(running_on web)$(domain_file $from web)" "$from /srv/store/disk.qcow2" "the machine runs on as before"
is "$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" "disk.qcow2 " "nothing is left of it"
is "$(domain_verdict $from web)" OK "and it misses nothing"
done_testing
