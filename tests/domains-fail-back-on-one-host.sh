#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A domain whose disks were moved on its host with --keep-failback is moved back, running or off, also by one that goes
# on after a kill; or the way back is closed.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_free 1G
use_seed
new_host one
libvirt_up one
must mkdir "$tmp/one/srv/other" "$tmp/one/srv/third"
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 96M
must qemu-img create -q -f raw "$tmp/one/srv/store/data.img" 32M
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=300 span=16M flush=32 log=1'

# goes OPTIONS...: to the other directory, with a way back; sets id.
goes()
{
    run on one timeout 200 "$blockmig" move web /srv/other --json "$@"
    is "$status" 0 "the disks go to another directory ($*)" || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper_of "$id"
}

state()
{
    on one "$blockmig" job show --json "$id" | jq -r .state
}

is_state()
{
    [ "$(state)" = "$1" ]
}

both()
{
    echo "$(files "$tmp/one/srv/store")/$(files "$tmp/one/srv/other")"
}

verdict()
{
    is "$(domain_verdict one web)" OK "$1: the guest misses nothing"
    must domain_cmd one web start
}

goes --keep-failback=1h --delete-source
is "$(both)" "data.img.blockmig-source disk.qcow2.blockmig-source /data.img disk.qcow2 " "the source is kept"
run on one "$blockmig" move web /srv/third
is "$status" 3 "as long as the way is open it is not moved on"
job failback "$id" --json
is "$status/$(jq -c '[.command, .result, .method, (.disks | length)]' <<<"$out")" '0/["job failback","done","mirror",2]' \
    "they are moved back" || diag "$err"
is "$(both)" "data.img disk.qcow2 /" "and nothing else is left"
is "$(domain_file one web)" /srv/store/disk.qcow2 "the machine is on them"
is "$(state)" failed-back "the job says so"
verdict back

# killed in PHASE[+SECONDS] of the way back, and finished by the same command.
some 1 base converge switchover prove settle cleanup
for phase in "${chosen[@]}"; do
    goes --keep-failback=1h --delete-source
    killed_in one "$phase" job failback "$id" || diag "not killed in time"
    is "$(on one virsh domstate web | head -n 1)" running "killed in $phase: the machine runs"
    job finish "$id"
    [ "$status" -eq 0 ] || {
        is "$status" 3 "$phase: it is not closed while the machine is under way"
        job failback "$id"
        is "$status" 0 "$phase: the same command ends it" || diag "$err"
    }
    is "$(both)" "data.img disk.qcow2 /" "$phase: nothing else is left"
    verdict "$phase"
done

run on one "$blockmig" move web /srv/other --keep-failback=1h -O qcow2
is "$status" 3 "two formats that become one have no way back"
like "$err" "no way back: its disks have different formats" "and that is told"

# ---- the keeper ---------------------------------------------------------------------------------------

goes --keep-failback=3s --delete-source
end_keeper_of "$id"
wait_for 10 is_state overdue && ok "without a keeper it is overdue" || not_ok "without a keeper it is overdue: $(state)"
job finish "$id"
is "$(both)/$(state)" "/data.img disk.qcow2 /done" "and closed by hand, as it was to be"

must on one virsh -q destroy web

# ---- off ----------------------------------------------------------------------------------------------

on one timeout 200 "$blockmig" move web /srv/store --keep-failback=1h --bandwidth=8MiB/s --json >"$tmp/cold.out" 2>"$tmp/cold.err" 3>&- </dev/null &
pid=$!
wait_for 20 test -s "$tmp/one/srv/store/data.img"
fails_with 1 "nobody starts a machine while its disks are moved" on one virsh -q start web
wait "$pid"
status=$? out=$(cat "$tmp/cold.out")
is "$status/$(jq -r .method <<<"$out")" 0/cold "disks of a machine that is off are moved" || diag "$(cat "$tmp/cold.err")"
id=$(jq -r .job <<<"$out")
at_exit end_keeper_of "$id"
is "$(domain_file one web)" /srv/store/disk.qcow2 "its definition says where they are"
start_again one web
verdict "started there"
sleep 1
must on one virsh -q destroy web
job failback "$id" --json
is "$status/$(jq -r .method <<<"$out")" 0/cold "and moved back with what it wrote since" || diag "$err"
is "$(both)" "data.img.blockmig-source disk.qcow2.blockmig-source /data.img disk.qcow2 " "the others are kept"
start_again one web
verdict "off and on again"
done_testing
