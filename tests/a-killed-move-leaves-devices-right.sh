#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# SIGKILL in the middle of a move from or to a block device: the machine runs on; the same command again rolls back or
# finishes; and if the machine dies too, its old command line finds the truth or fails.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_loop
need_free 1G
use_seed

# begin NAME SOURCE FORMAT TARGET WHEN [OPTION...]: kills the move when WHEN says so.
begin()
{
    local name=$1 source=$2 format=$3 target=$4 when=$5
    shift 5
    mkdir -p "$tmp/$name.s"
    must qemu-io -f "$format" -c 'write -P 7 32M 32M' "$source"
    start_guest "$name" --libvirt-style --disk "$source:$format" --append 'span=16M flush=16 log=1'
    guest_wait_ready "$name"
    kill_when "$when $tmp/$name.s $target $source" move "qmp:$tmp/$name/qmp" "$target" "${patient[@]}" \
        --scratch "$tmp/$name.s" "$@"
}

# killed NAME SOURCE FORMAT TARGET TARGET-FORMAT WHEN [OPTION...]
killed()
{
    local name=$1 source=$2 format=$3 target=$4 becomes=$5 when=$6
    shift 6
    begin "$name" "$source" "$format" "$target" "$when" -O "$becomes" "$@"
    wait_for 5 is_running "$name" && ok "$name: the machine runs on" || not_ok "$name: the machine runs on"
    diag "left: $(files "$tmp/$name.s")"
    # It may have been over before it was killed.
    [ "$(newest_job .state)" = done ] && run true ||
        run blockmig move "qmp:$tmp/$name/qmp" "$target" "${patient[@]}" --scratch "$tmp/$name.s" --json -O "$becomes"
    diag "$(jq -c '{result, phase, error}' <<<"$out")"
    if [ "$status" -eq 4 ]; then
        is "$(files "$tmp/$name.s")" "" "$name: rolled back, nothing is left"
        [ ! -b "$target" ] || like "$err" "$target holds an unfinished copy" "$name: but on the device"
        [ ! -b "$source" ] || is "$(blockdev --getro "$source")" 0 "$name: the source can be written to"
        run blockmig move "qmp:$tmp/$name/qmp" "$target" "${patient[@]}" --scratch "$tmp/$name.s" --json -O "$becomes"
    fi
    is "$status" 0 "$name: the move is done in the end"
    [ "$status" -eq 0 ] || diag "$err"
    is "$(files "$tmp/$name.s")" "" "$name: no overlay is left"
    sleep 0.3
    is "$(guest_verdict "$name")" OK "$name: the guest misses nothing"
    stop_guest "$name"
    like "$(host_verdict "$name" 0 "$target" "$becomes")" '^OK [1-9]' "$name: and the host agrees"
    [ -b "$source" ] || source=$source.blockmig-source
    run_ok "$name: the kept source is what the receipt says" blockmig verify -f "$format" "$source" \
        --receipt "$(blockmig job show --json "$(newest_job)" | jq -r '.disks[0].receipt')"
    [ ! -b "$source" ] || is "$(blockdev --getro "$source")" 1 "$name: and it is read-only"
}

while_copying()
{
    { [ -n "$(find "$1" -name '*.blockmig-1')" ] || [ -e "$3.blockmig-0" ]; } && sleep 0.5
}

at_the_switch()
{
    [ -n "$(find "$1" -name '*.blockmig-new')" ] || [ -e "$2.blockmig-new" ]
}

at_the_proof()
{
    phase_is prove
}

at_the_end()
{
    phase_is cleanup
}

mkdir "$tmp/a" "$tmp/b"
used_device one 80M
one=$REPLY
must qemu-img create -q -f qcow2 "$one" 64M
# Formats of the source and the target, moment and options of the kills from a device.
declare -A from=(
    [base]='qcow2 qcow2 while_copying --bandwidth 16MiB/s'
    [switch]='qcow2 raw at_the_switch'
    [prove]='raw raw at_the_proof'
    [end]='raw qcow2 at_the_end'
)
some 2 base switch prove end
for name in "${chosen[@]}"; do
    read -r format becomes when options <<<"${from[$name]}"
    # shellcheck disable=SC2086
    killed "from-$name" "$one" "$format" "$tmp/b/$name" "$becomes" "$when" $options
    must blockdev --setrw "$one"
done

# source NAME: a disk in a file.
source_file()
{
    must qemu-img create -q -f qcow2 "$tmp/a/$1" 64M
}

some 2 base:while_copying switch:at_the_switch prove:at_the_proof
for when in "${chosen[@]}"; do
    name=${when%:*}
    source_file "$name"
    killed "to-$name" "$tmp/a/$name" qcow2 "$one" raw "${when#*:}" --bandwidth 16MiB/s
done
used_device two 96M
killed both "$one" raw "$REPLY" qcow2 at_the_switch

# ---- and the machine dies, too ----
must blockdev --setrw "$one"
begin dead "$one" raw "$tmp/b/dead" while_copying --bandwidth 16MiB/s
is "$(blockdev --getro "$one")" 1 "dead: the device was read-only"
kill_guest dead
start_guest dead --libvirt-style --disk "$one:raw"
wait_for 5 test ! -d "/proc/$(cat "$tmp/dead/pid")" && ok "dead: the old command line fails" ||
    not_ok "dead: the old command line fails"
overlay=$(find "$tmp/dead.s" -name '*.blockmig-1')
is "$(qemu-img info --output=json "$overlay" | jq -r '."backing-filename"')" "$one" \
    "dead: the chain is written in the overlay"
like "$(host_verdict dead 0 "$overlay" qcow2)" '^OK [1-9]' "dead: and leads to every flushed write"

# Somebody insists.
must blockdev --setrw "$one"
sum=$(sha256sum <"$overlay")
start_guest dead --libvirt-style --disk "$one:raw" --append 'span=16M flush=16 log=1'
guest_wait_ready dead 2
fails_with 9 "dead: a machine that was started from the device all the same is not moved" \
    blockmig move "qmp:$tmp/dead/qmp" "$tmp/b/dead" "${patient[@]}" --scratch "$tmp/dead.s"
like "$err" "without the overlays ${overlay%.*}.* none may be removed" "dead: and the reason is given"
is "$(sha256sum <"$overlay")" "$sum" "dead: what it had written is kept"
done_testing
