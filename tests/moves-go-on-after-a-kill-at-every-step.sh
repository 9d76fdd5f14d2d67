#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# SIGKILL after every commit of the journal (every few, unless there is time): the machine runs on; the same command goes on with the move, "job cancel"
# brings the machine back, and nothing is left over by either.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_free 1G
use_seed

# give_up NAME: as far as it can be given up; otherwise it is finished.  Sets `ended`.
give_up()
{
    ended=back
    [ "$(newest_job)" != null ] || return 0
    run blockmig job cancel "$(newest_job)"
    [ "$status" -ne 3 ] || { ended=there; run blockmig job resume "$(newest_job)"; }
}

go_on()
{
    run blockmig move "qmp:$tmp/$1/qmp" "$2" "${patient[@]}"
    ended=there
}

# steps NAME STYLE FORMAT WHAT: the disk goes from one directory to the other, killed at one step after the other.
steps()
{
    local name=$1 disk=disk.$3 what=$4 from=$tmp/$1.a to=$tmp/$1.b commit wrong='' swap count=0
    mkdir "$from" "$to"
    must qemu-img create -q -f "$3" "$from/$disk" 32M
    must qemu-io -f "$3" -c 'write -P 7 16M 8M' "$from/$disk"
    start_guest "$name" "$2" --disk "$from/$disk:$3" --append 'span=8M flush=16 log=1'
    guest_wait_ready "$name"
    every 14
    for ((commit = first; commit < 80; commit += step)); do
        killed_at "$commit" 0 move "qmp:$tmp/$name/qmp" "$to" "${patient[@]}" || break
        count=$((count + 1))
        wait_for 30 is_running "$name" || wrong+="$commit: stopped; "
        # Killed behind its last word: there is nothing left to do.
        status=0 ended=there
        [ "$(newest_job .state)" = done ] || "$what" "$name" "$to"
        [ "$status" -eq 0 ] || wrong+="$commit: $status $err; "
        wait_for 30 is_running "$name" || wrong+="$commit: stopped afterwards; "
        if [ "$ended" = there ] && [ "$(newest_job .state)" = done ]; then
            rm -f "$from/$disk.blockmig-source"
            swap=$from from=$to to=$swap
        fi
        [ "$(files "$from")/$(files "$to")" = "$disk /" ] || wrong+="$commit: left $(files "$from")/$(files "$to"); "
        sleep 0.2
        answer=$(guest_verdict "$name")
        [ "$answer" = OK ] || wrong+="$commit: $answer; "
        guest_cmd "$name" start >/dev/null
        [ -z "$wrong" ] || break
    done
    is "$wrong" "" "$name: killed at $count steps"
    [ $((count * step)) -gt 15 ] && ok "$name: these were all" || not_ok "$name: these were all"
    # The last one was not killed: it has moved the disk.
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing in the end"
    stop_guest "$name"
    [ -n "$wrong" ] || like "$(host_verdict "$name" 0 "$to/$disk" "$3")" '^OK [1-9]' "$name: and the host agrees"
}

steps again --libvirt-style qcow2 go_on
steps cancel --libvirt-style qcow2 give_up
steps raw --drive-style raw go_on
steps back --drive-style raw give_up
done_testing
