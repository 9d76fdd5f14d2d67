#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A machine that goes off between its arrival and the end of the job has lost nothing when it is started again,
# whether blockmig lives, is killed, or finds that it was started meanwhile.  One that stands still is told of.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool sqlite3
need_free 2G
blockmigd=$tmp/run-agent emulator=$tmp/run-qemu
slow_syncs run-agent "$builddir/tools/blockmigd" "$tmp/slow"
slow_syncs run-qemu /usr/bin/qemu-system-x86_64 "$tmp/slow-qemu"
two_hosts
must mkdir "$tmp/one/srv/other" "$tmp/two/srv/other"
must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 64M
must qemu-img create -q -f raw "$tmp/one/srv/store/data.img" 24M
arguments=(web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=300 span=16M flush=32 log=1')
start_domain one "${arguments[@]}"

# held_in HOST PHASE COMMAND...: blockmig stands still in that phase, until it is let.
held_in()
{
    local host=$1 phase=$2
    shift 2
    : >"$tmp/held.err"
    on "$host" timeout 200 "$blockmig" "$@" -v >"$tmp/held.out" 2>"$tmp/held.err" 3>&- </dev/null &
    held=$!
    while kill -0 $held 2>/dev/null && ! grep -q "^blockmig: $phase" "$tmp/held.err"; do
        sleep 0.01
    done
    on "$host" pkill -STOP -x blockmig || diag "not held in time: $(cat "$tmp/held.err")"
}

is_off()
{
    ! on "$1" virsh -q list --name | grep -qx web
}

# goes_off HOST: by itself, unless the hypervisor lost its memory.
goes_off()
{
    domain_cmd "$1" web poweroff 10 >/dev/null 2>&1
    wait_for 5 is_off "$1" || must on "$1" virsh -q destroy web
}

# is_whole SAY HOST DIRECTORY: nothing but its disks is there, which its definition names, and nothing of it is lost.
is_whole()
{
    is "$(domain_file "$2" web --inactive)" "$3/disk.qcow2" "$1: its definition names the merged image"
    is "$(files "$tmp/$2$3")" "data.img disk.qcow2 " "$1: nothing else is there"
    must qemu-img check -q -U "$tmp/$2$3/disk.qcow2"
    is_off "$2" && start_again "$2" web
    is "$(domain_verdict "$2" web)" OK "$1: it misses nothing"
    must domain_cmd "$2" web start
}

# ---- to another host --------------------------------------------------------------------------------

from=one to=two

# turn: it goes back the next time.
turn()
{
    local n=$from
    from=$to to=$n
}

# go COMMAND ARGUMENTS...: to the other host
go()
{
    "$@" migrate web "blockmig://$(address_of $to)" --delete-source
}

# goes_on SAY HOSTS: the same command ends it; then it is defined on those hosts.
goes_on()
{
    run on $from timeout 200 "$blockmig" migrate web "blockmig://$(address_of $to)" --delete-source
    is "$status" 0 "$1: the same command ends it" || diag "$err"
    is "$(files "$tmp/$from/srv/store")$(defined_on web)" "$2" "$1: nothing is left on the source"
}

# ended SAY HOSTS: as goes_on, but blockmig was held.
ended()
{
    on $from pkill -CONT -x blockmig
    wait $held
    is $? 0 "$1: the job ends" || diag "$(cat "$tmp/held.err")"
    is "$(files "$tmp/$from/srv/store")$(defined_on web)" "$2" "$1: nothing is left on the source"
}

# is_merging FILE: what blockmig says there
is_merging()
{
    grep -q 'the machine is off' "${1:-$tmp/killed.err}"
}

# killed_between: while the second disk, whose hypervisor is slow, is not merged yet.
killed_between()
{
    must touch "$tmp/slow-qemu"
    go killed_in $from settle:first_is_merged || diag "not killed in time"
    rm "$tmp/slow-qemu"
}

# The journal knows it: between the act and that nobody could tell, if the machine vanished.
first_is_merged()
{
    [ "$(sqlite3 -cmd '.timeout 5000' "$tmp/$from/srv/state/journal.sqlite" "SELECT count(*) FROM event
        WHERE kind = 'result' AND text LIKE 'vda is on %' AND job = (SELECT id FROM job ORDER BY started DESC LIMIT 1)")" -gt 0 ]
}

# forgets TEXT: the journal never heard of it, as if blockmig had been killed just before it wrote that.
forgets()
{
    must python3 -c '
import sqlite3, sys
journal = sqlite3.connect(sys.argv[1])
count = journal.execute("delete from event where kind = ? and text like ?", ("result", sys.argv[2])).rowcount
journal.commit()
sys.exit(count == 0)' "$tmp/$from/srv/state/journal.sqlite" "$1"
}

case_off()
{
    go held_in $from prove
    goes_off $to
    must touch "$tmp/slow"
    on $from pkill -CONT -x blockmig
    wait_for 60 is_merging "$tmp/held.err"
    fails_with 1 "while it is merged, nobody starts it" on $to virsh -q start web
    must rm "$tmp/slow"
    ended "off" "$to "
    is_whole "off" $to /srv/store
    turn
}

case_off_while_it_is_settled()
{
    go held_in $from settle
    goes_off $to
    ended "off while it is merged by the hypervisor" "$to "
    is_whole "off while it is merged by the hypervisor" $to /srv/store
    turn
}

case_killed()
{
    go killed_in $from prove || diag "not killed in time"
    goes_off $to
    must touch "$tmp/slow"
    go killed_in $from settle:is_merging || diag "not killed in time"
    must rm "$tmp/slow"
    goes_on "killed" "$to "
    is_whole "killed" $to /srv/store
    turn
}

case_started_again()
{
    go held_in $from prove
    goes_off $to
    start_again $to web
    ended "started again" "$to "
    is_whole "started again" $to /srv/store
    turn
}

case_one_disk_is_merged()
{
    killed_between
    goes_off $to
    is "$(domain_file $to web --inactive)" /srv/store/disk.qcow2 "the definition follows each disk"
    goes_on "one disk is merged" "$to "
    is_whole "one disk is merged" $to /srv/store
    turn
}

case_killed_when_it_was_let_go()
{
    go killed_in $from prove || diag "not killed in time"
    forgets "the machine is on the target"
    goes_off $to
    goes_on "killed when it was let go" "$to "
    is_whole "killed when it was let go" $to /srv/store
    turn
}

case_stopped()
{
    go held_in $from settle
    must on $to virsh -q suspend web
    ended "stopped by hand" "$to "
    like "$(cat "$tmp/held.err")" "the machine stands still: 'virsh resume web' lets it go on" "stopped by hand: and that is told"
    must on $to virsh -q resume web
    is_whole "stopped by hand" $to /srv/store
    turn
}

# What the machine wrote to it last is in the overlay, which the hypervisor does not have any more.
case_taken()
{
    must qemu-img create -q -f qcow2 "$tmp/$from/srv/store/more.qcow2" 8M
    must on $from virsh -q attach-disk web /srv/store/more.qcow2 vdc --subdriver qcow2 --live --config
    go held_in $from settle
    must on $to virsh -q detach-disk web vdc --live --config
    wait_for 10 lacks_vdc || must false "vdc is taken"
    must qemu-io -c 'write -q -P 7 1M 64k' "$tmp/$to/srv/store/more.qcow2.blockmig-new"
    ended "a disk was taken" "$to "
    is "$(qemu-io -r -c 'read -P 7 1M 64k' "$tmp/$to/srv/store/more.qcow2" | head -n 1)" \
        'read 65536/65536 bytes at offset 1048576' "a disk was taken: it has all that was written"
    rm "$tmp/$to/srv/store/more.qcow2"
    is_whole "a disk was taken" $to /srv/store
    turn
}

lacks_vdc()
{
    ! on $to virsh -q domblklist web | grep -q vdc
}

# cases COUNT NAME...: so many of them.
cases()
{
    some "$@"
    local one
    for one in "${chosen[@]}"; do
        "case_$one"
    done
}

use_seed
case_stopped
cases 2 taken off off_while_it_is_settled killed started_again one_disk_is_merged killed_when_it_was_let_go

# ---- on one host ------------------------------------------------------------------------------------

to=$from at=store away=other

case_moved()
{
    held_in $from prove move web /srv/$away --delete-source
    goes_off $to
    ended "moved" "$to "
    is_whole "moved" $to /srv/$away
    local n=$at
    at=$away away=$n
}

case_moved_and_killed()
{
    killed_in $from prove move web /srv/$away --delete-source || diag "not killed in time"
    goes_off $to
    killed_in $from settle:is_merging move web /srv/$away --delete-source || diag "not killed in time"
    run on $from timeout 200 "$blockmig" move web /srv/$away --delete-source
    is "$status" 0 "moved and killed: the same command ends it" || diag "$err"
    is "$(files "$tmp/$from/srv/$at")" "" "moved and killed: nothing is left on the source"
    is_whole "moved and killed" $to /srv/$away
    local n=$at
    at=$away away=$n
}

cases 1 moved moved_and_killed
if [ "$at" = other ]; then
    run on $from timeout 200 "$blockmig" move web /srv/store --delete-source
    is "$status" 0 "and it is where it was" || diag "$err"
fi

to=one
[ $from = two ] || to=two

# ---- without a definition that outlives it ----------------------------------------------------------

# vanishes: its definition with it, for it has none any more but that of the running machine.
vanishes()
{
    goes_off $to
    is "$(defined_on web)" "" "it vanished"
}

# comes_back SAY: it is defined where it was last, on its merged images, and loses its definition again.
comes_back()
{
    domain_xml "${arguments[@]}" >"$tmp/$to/srv/web.xml"
    must on $to virsh -q define /srv/web.xml
    is_whole "$1" $to /srv/store
    must on $to virsh -q undefine web
    turn
}

must on $from virsh -q undefine web
case_vanished()
{
    go held_in $from prove
    vanishes
    ended "vanished" ""
    comes_back "vanished"
}

case_killed_and_vanished()
{
    go killed_in $from prove || diag "not killed in time"
    forgets "the machine is on the target"
    vanishes
    goes_on "killed and vanished" ""
    comes_back "killed and vanished"
}

case_one_of_two_disks_was_merged()
{
    killed_between
    vanishes
    goes_on "one of two disks was merged" ""
    comes_back "one of two disks was merged"
}

case_nobody_knows()
{
    killed_between
    forgets "vda is on %"
    vanishes
    kept=$(files "$tmp/$to/srv/store")
    run on $from timeout 200 "$blockmig" migrate web "blockmig://$(address_of $to)" --delete-source
    is "$status" 9 "where nobody knows what it wrote to last" || diag "$err"
    is "$(files "$tmp/$to/srv/store")" "$kept" "all is kept"
    like "$kept" "disk.qcow2 disk.qcow2.blockmig-new" "both files of that disk"
}

cases 1 vanished killed_and_vanished one_of_two_disks_was_merged nobody_knows
done_testing
