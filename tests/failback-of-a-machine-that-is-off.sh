#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The machine dies or is started anew while its way back is open: no name leads to stale data, and the way back can be
# used or closed as soon as the machine is off.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_root
need_free 1G

# windowed NAME: a machine with a qcow2 and a raw disk, moved, with its way back open; sets id.
windowed()
{
    local name=$1
    mkdir -p "$tmp/$name.a" "$tmp/$name.b"
    must qemu-img create -q -f raw "$tmp/$name.a/low.raw" 64M
    must qemu-io -f raw -c 'write -P 1 40M 8M' "$tmp/$name.a/low.raw"
    must qemu-img create -q -f qcow2 -F raw -b low.raw "$tmp/$name.a/one.qcow2"
    must qemu-img create -q -f raw "$tmp/$name.a/two.raw" 64M
    start_guest "$name" --libvirt-style --disk "$tmp/$name.a/one.qcow2:qcow2" --disk "$tmp/$name.a/two.raw:raw" \
        --append 'span=16M flush=16 log=1'
    guest_wait_ready "$name"
    run blockmig move "qmp:$tmp/$name/qmp" "$tmp/$name.b" "${patient[@]}" --keep-failback=1h --json
    is "$status" 0 "$name: moved"
    [ "$status" -eq 0 ] || diag "$err"
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper "$id"
    sleep 1
}

# judged NAME DIRECTORY OTHER-FILES: both disks have everything there, and nothing else is left.
judged()
{
    local name=$1 where=$2
    like "$(host_verdict "$name" 0 "$tmp/$where/one.qcow2" qcow2)" '^OK [1-9]' "$name: the host agrees for the first"
    like "$(host_verdict "$name" 1 "$tmp/$where/two.raw" raw)" '^OK [1-9]' "$name: and for the second"
    image_clean "$tmp/$where/one.qcow2" "$name: qemu-img check finds nothing"
    is "$(files "$tmp/$name.a")/$(files "$tmp/$name.b")" "$3" "$name: nothing is left"
}

# started NAME DIRECTORY [BOOTS]: from these names.
started()
{
    start_guest "$1" --libvirt-style --disk "$tmp/$2/one.qcow2:qcow2" --disk "$tmp/$2/two.raw:raw" \
        --append 'span=16M flush=16 log=1'
    guest_wait_ready "$1" "$3"
    sleep 0.5
}

# ---- closed ----
windowed closed
kill_guest closed
is "$(qemu-img info -U --output=json "$tmp/closed.b/one.qcow2" | jq -r '."backing-filename"')" one.qcow2.blockmig-0 \
    "closed: the target's name leads to its overlay"
like "$(host_verdict closed 0 "$tmp/closed.b/one.qcow2" qcow2)" '^OK [1-9]' "closed: which has everything"
is "$(ls "$tmp/closed.b/two.raw" "$tmp/closed.a/two.raw" "$tmp/closed.a/one.qcow2" 2>/dev/null)" "" \
    "closed: the other names lead nowhere"
run blockmig job finish "$id" --json
is "$status" 0 "closed: the way back is closed"
[ "$status" -eq 0 ] || diag "$err"
judged closed closed.b 'low.raw one.qcow2.blockmig-source two.raw.blockmig-source /one.qcow2 two.raw '
started closed closed.b 2
is "$(guest_verdict closed)" OK "closed: the machine starts from the target"
stop_guest closed

# ---- back ----
windowed back
kill_guest back
run blockmig job failback "$id" --json
is "$status" 0 "back: the machine's disks are brought back"
[ "$status" -eq 0 ] || diag "$err"
run_ok "back: and the receipt says the same" blockmig verify "$tmp/back.a/two.raw" \
    --receipt "$(jq -r '.disks[1].receipt' <<<"$out")"
judged back back.a 'low.raw one.qcow2 two.raw /'
is "$(qemu-img info --output=json "$tmp/back.a/one.qcow2" | jq -r '."backing-filename"')" low.raw \
    "back: the chain is what it was"
started back back.a 2
is "$(guest_verdict back)" OK "back: the machine starts from its old names"
stop_guest back

# ---- anew, from the qcow2 target alone: the raw one refuses ----
windowed anew
kill_guest anew
start_guest anew --libvirt-style --disk "$tmp/anew.b/one.qcow2:qcow2" --append 'span=16M flush=16 log=1'
guest_wait_ready anew 2
sleep 1
fails_with 3 "anew: a machine with other disks is refused" blockmig job failback "$id"
like "$err" 'two.raw is not a disk of the machine' "anew: for that reason"
stop_guest anew
run blockmig job failback "$id" --json
is "$status" 0 "anew: brought back when it is off"
[ "$status" -eq 0 ] || diag "$err"
judged anew anew.a 'low.raw one.qcow2 two.raw /'

# ---- anew, with all its disks: they can be brought back, or kept, while it runs ----
for way in failback finish; do
    mkdir "$tmp/$way.a" "$tmp/$way.b"
    must qemu-img create -q -f qcow2 "$tmp/$way.a/disk.qcow2" 64M
    start_guest "$way" --libvirt-style --disk "$tmp/$way.a/disk.qcow2:qcow2" --append 'span=16M flush=16 log=1'
    guest_wait_ready "$way"
    must blockmig move "qmp:$tmp/$way/qmp" "$tmp/$way.b" "${patient[@]}" --keep-failback=1h --delete-source --json
    id=$(jq -r .job <<<"$out")
    at_exit end_keeper "$id"
    sleep 0.5
    stop_guest "$way"
    start_guest "$way" --libvirt-style --disk "$tmp/$way.b/disk.qcow2:qcow2" --append 'span=16M flush=16 log=1'
    guest_wait_ready "$way" 2
    sleep 0.5
    run blockmig job "$way" "$id" "${patient[@]}" --json
    is "$status" 0 "$way of a machine that was started anew"
    [ "$status" -eq 0 ] || diag "$err"
    sleep 0.5
    is "$(guest_verdict "$way")" OK "$way: the guest misses nothing"
    stop_guest "$way"
    [ "$way" = finish ] && where=b left=/disk.qcow2 || where=a left='disk.qcow2 /'
    is "$(files "$tmp/$way.a")/$(files "$tmp/$way.b" | tr -d ' ')" "$left" "$way: nothing is left"
    like "$(host_verdict "$way" 0 "$tmp/$way.$where/disk.qcow2" qcow2)" '^OK [1-9]' "$way: and the host agrees"
    image_clean "$tmp/$way.$where/disk.qcow2" "$way: qemu-img check finds nothing"
done

# ---- the machine dies just after it was brought back, and so does who did it ----
windowed late
"$blockmig" job failback "$id" "${patient[@]}" >/dev/null 2>&1 3>&- &
pid=$!
for try in $(seq 4000); do
    [ ! -e "$tmp/late.a/one.qcow2" ] || break
    sleep 0.002
done
sleep 0.05
kill -KILL "$pid"
wait "$pid" 2>/dev/null
sleep 0.5
kill_guest late
diag "left: $(files "$tmp/late.a")/$(files "$tmp/late.b")"
run blockmig job failback "$id" --json
is "$status" 0 "late: that is completed"
[ "$status" -eq 0 ] || diag "$err"
judged late late.a 'low.raw one.qcow2 two.raw /'
done_testing
