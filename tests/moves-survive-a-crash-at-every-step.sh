#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The machine and the program are killed together, after a commit of the journal: the overlays are put together from
# their files alone, or, if the machine was started again from its old command line, while it runs.  No flushed write
# is lost and nothing is left over.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_root
need_free 1G
use_seed

guest_on()
{
    start_guest "$1" "$2" --disk "$3:$4" --append 'span=8M flush=16 log=1'
    guest_wait_ready "$1" "$5"
}

# recovered NAME COMMAND...: exit 0, or 4 for what only had to be rolled back.
recovered()
{
    run blockmig "$@"
    [ "$status" -eq 0 ] || [ "$status" -eq 4 ]
}

# put_together NAME DISK FORMAT: without the machine.  Sets `there` to the directory of the disk.
put_together()
{
    local name=$1 disk=$2 answer
    recovered job cancel "$(newest_job)" || recovered job resume "$(newest_job)" || wrong+="$commit: $status $err; "
    there=$from
    [ "$(newest_job .state)" != done ] || { there=$to; rm -f "$from/$disk.blockmig-source"; }
    [ "$(files "$from")$(files "$to")" = "$disk " ] || wrong+="$commit: left $(files "$from")/$(files "$to"); "
    answer=$(host_verdict "$name" 0 "$there/$disk" "$3")
    [ "${answer#OK}" != "$answer" ] || wrong+="$commit: $answer; "
    # Leaks (3) are what a QEMU that was killed leaves in its own image.
    [ "$3" != qcow2 ] || qemu-img check -q "$there/$disk" 3>&- || [ $? -eq 3 ] || wrong+="$commit: not clean; "
}

# steps NAME STYLE FORMAT RESTART
steps()
{
    local name=$1 style=$2 format=$3 disk=disk.$3 from=$tmp/$1.a to=$tmp/$1.b commit there swap wrong='' boots=1 count=0
    mkdir "$from" "$to"
    must qemu-img create -q -f "$format" "$from/$disk" 32M
    must qemu-io -f "$format" -c 'write -P 7 16M 8M' "$from/$disk"
    guest_on "$name" "$style" "$from/$disk" "$format" 1
    # A log that promises nothing proves nothing.
    wait_for 20 grep -q '^log: disk 0 flushed' "$tmp/$name/console" || must false "the guest flushes"
    every 24
    for ((commit = first; commit < 80; commit += step)); do
        killed_at "$commit" "$(cat "$tmp/$name/pid")" move "qmp:$tmp/$name/qmp" "$to" "${patient[@]}" || break
        wait "$(cat "$tmp/$name/pid")" 2>/dev/null
        count=$((count + 1)) boots=$((boots + 1)) there=$from
        if [ "$4" = restart ] && [ -e "$from/$disk" ]; then
            guest_on "$name" "$style" "$from/$disk" "$format" "$boots"
            recovered job resume "$(newest_job)" || wrong+="$commit: resume $status $err; "
            [ "$(guest_verdict "$name")" = OK ] || wrong+="$commit: $(guest_verdict "$name"); "
            stop_guest "$name"
            boots=$((boots + 1))
        fi
        if [ "$(newest_job .state)" = done ] || [ "$(newest_job .state)" = rolled-back ]; then
            [ "$(newest_job .state)" != done ] || { there=$to; rm -f "$from/$disk.blockmig-source"; }
            [ "$(files "$from")$(files "$to")" = "$disk " ] || wrong+="$commit: left $(files "$from")/$(files "$to"); "
        else
            put_together "$name" "$disk" "$format"
        fi
        [ -z "$wrong" ] || break
        [ "$there" = "$from" ] || { swap=$from from=$to to=$swap; }
        guest_on "$name" "$style" "$from/$disk" "$format" "$boots"
    done
    is "$wrong" "" "$name: both killed at $count steps"
    [ "$count" -gt 0 ] && ok "$name: these were some" || not_ok "$name: these were some"
    stop_guest "$name"
}

steps qcow2 --libvirt-style qcow2 off
steps drive --drive-style qcow2 off
steps raw --drive-style raw off
steps restart --libvirt-style qcow2 restart
steps again --drive-style qcow2 restart
done_testing
