#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A migration that is killed while it copies goes on from its checkpoint, also behind the base; the machine runs all
# the time, and loses nothing.  What is not the same any more is copied anew.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool jq sqlite3
need_free 1G
two_hosts

size=$((96 << 20))
random_file "$tmp/noise" $size 7
must qemu-img convert -f raw -O qcow2 "$tmp/noise" "$tmp/one/srv/store/disk.qcow2"
must cp "$tmp/noise" "$tmp/one/srv/store/data.img"
must truncate -s 32M "$tmp/one/srv/store/data.img"
must rm "$tmp/noise"
must sh -c "head -c 5000000 /dev/urandom >'$tmp/one/srv/store/cd.iso'"
cdrom="<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/srv/store/cd.iso'/>
    <target dev='hdc' bus='ide'/><readonly/></disk>"
start_domain one web --disk disk.qcow2:qcow2 --disk data.img:raw --append 'rate=100 span=4M flush=32 log=1' --extra "$cdrom"
slowly=(--compress=off --bandwidth=12MiB/s)

# has_checkpoint: does the newest job of $host know that $least bytes of a disk are on the target?
has_checkpoint()
{
    [ "$(sqlite3 -cmd '.timeout 5000' "$tmp/$host/srv/state/journal.sqlite" "SELECT max(frontier) >= $least FROM checkpoint
        WHERE job = (SELECT id FROM job ORDER BY started DESC LIMIT 1)" 2>/dev/null)" = 1 ]
}

# killed PHASE[:FUNCTION] HOST OPTIONS...
killed()
{
    local phase=$1 host=$2 to
    shift 2
    [ "$host" = one ] && to=two || to=one
    killed_in "$host" "$phase" migrate web "blockmig://$(address_of $to)" "$@"
    is $? 0 "killed in $phase"
    is "$(running_on web)" "${running-$host }" "  and the machine runs where it was"
}

# ends FROM TO OPTIONS...: sets sent, the bytes of the disks that this run has sent, and resumed
ends()
{
    local from=$1 to=$2
    shift 2
    migrate "$from" web "blockmig://$(address_of "$to")" --json "$@"
    is "$status" 0 "it comes to its end" || diag "$err"
    sent=$(jq '[.disks[].bytes_wire] | add' <<<"$out")
    resumed=$(jq .resumed <<<"$out")
    diag "sent $sent"
    is "$(domain_verdict "$to" web)" OK "  the guest misses nothing"
    is "$(find "$tmp/$from/srv/store" "$tmp/$to/srv/store" -name '*.blockmig-[0-9n]*')" "" "  no overlay is left"
    must domain_cmd "$to" web start
}

# In the base, after the first checkpoint; twice.
for least in 1 $((size / 2)); do
    killed base:has_checkpoint one "${slowly[@]}" --delete-source
done
like "$(cat "$tmp/killed.err")" 'was interrupted in its phase "base": what it has copied is gone on with' "it says so"
run on one "$blockmig" plan migrate web blockmig://192.0.2.2 "${slowly[@]}" --delete-source
like "$status $out" '^0 .*job .* is not finished' "a plan says what comes first" || diag "$err"
ends one two "${slowly[@]}" --delete-source
is "$resumed $((sent < size))" "true 1" "  the last run sends less than there is, with what it reads again"
is "$(cmp "$tmp/one/srv/store/cd.iso" "$tmp/two/srv/store/cd.iso" && echo same)" same "  and the medium is whole"
must rm "$tmp/one/srv/store/cd.iso"

# Behind the base, where nearly all is there already; twice.
for phase in converge switchover; do
    killed $phase two --compress=off --delete-source
done
ends two one --compress=off --delete-source
is "$resumed $((sent < size / 2))" "true 1" "  hardly anything is sent again"

# What was asked for is something else: it begins anew.
pick no yes
home=one least=1
if [ "$REPLY" = yes ]; then
    killed base:has_checkpoint one "${slowly[@]}" --delete-source
    ends one two --compress=off -O raw --delete-source
    is "$((sent > size))" 1 "  another command begins anew"
    home=two
fi

[ $home = one ] && away=two || away=one

# It is given up: nothing is left of it.
killed base:has_checkpoint $home "${slowly[@]}"
job=$(on $home "$blockmig" job list --json | jq -r '.jobs[0].job')
run on $home "$blockmig" job cancel "$job"
is "$status" 0 "given up" || diag "$err"
is "$(find "$tmp/$away/srv/store" -name '*.qcow2*' -o -name '*.img*')" "" "  nothing is left on the target"
is "$(find "$tmp/$home/srv/store" -name '*.blockmig-*')" "" "  nor here"
is "$(domain_verdict $home web)" OK "  the guest misses nothing"
must domain_cmd $home web start

# A machine that is off, and one that ran meanwhile.
must on $home virsh -q destroy web
for meanwhile in nothing ran; do
    running='' killed base:has_checkpoint $home "${slowly[@]}" --method=cold
    if [ $meanwhile = ran ]; then
        start_again $home web
        sleep 2
        must on $home virsh -q destroy web
    fi
done
migrate $home web "blockmig://$(address_of $away)" --json "${slowly[@]}" --method=cold
is "$status" 0 "the same command ends it" || diag "$err"
like "$err" 'may have changed since it was copied: copying it from the beginning' "  from the beginning, as it ran meanwhile"
start_again $away web
is "$(domain_verdict $away web)" OK "  the guest misses nothing"
done_testing
