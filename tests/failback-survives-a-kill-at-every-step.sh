#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Going back and closing the way back are killed exactly at a system call, one after the other (sendmsg: each command to
# the machine): the machine runs on, and the same command again ends as if nothing had happened.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/guest/lib-guest.sh"
need_guest
need_root
need_free 1G
need_tool strace
use_seed
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

mkdir "$tmp/a" "$tmp/b"
must qemu-img create -q -f qcow2 "$tmp/a/one.qcow2" 32M
must qemu-img create -q -f raw "$tmp/a/two.raw" 32M
start_guest g --libvirt-style --disk "$tmp/a/one.qcow2:qcow2" --disk "$tmp/a/two.raw:raw" \
    --append 'span=4M flush=64 log=1'
guest_wait_ready g
here=a there=b

# killed_at CALL COUNT ACTION: false if the command ended before its COUNTth CALL.  Only the process itself is
# traced: its guard must live.
killed_at()
{
    timeout 300 strace -qq -o /dev/null -e trace="$1" -e inject="$1:signal=SIGKILL:when=$2" \
        "$blockmig" job "$3" "$id" "${patient[@]}" >/dev/null 2>&1 3>&-
    [ $? -ne 0 ]
}

# judge WHERE ACTION: what is wrong after the command is given again.
judge()
{
    local where=$1 action=$2 wanted
    wait_for 30 is_running g || echo "$where: the machine stands still; "
    # Killed behind its last word in the journal there is nothing left to do.
    [[ $(blockmig job show --json "$id" | jq -r .state) =~ ^(done|failed-back)$ ]] ||
        blockmig job "$action" "$id" "${patient[@]}" >"$tmp/again" 2>&1 3>&- || echo "$where: $(cat "$tmp/again"); "
    wanted='one.qcow2 two.raw /'
    [ "$action" = failback ] || wanted='/one.qcow2 two.raw '
    [ "$(files "$tmp/$here")/$(files "$tmp/$there")" = "$wanted" ] ||
        echo "$where: left $(files "$tmp/$here")/$(files "$tmp/$there"); "
    [ "$(guest_verdict g)" = OK ] || echo "$where: the guest misses something; "
    guest_cmd g start >/dev/null
}

# Longer strides without BLOCKMIG_LONG: each step is a move there, and what follows.
pick 40 1
longer=$REPLY
for action in failback finish; do
    some 3 renameat2 rename link unlink sendmsg
    for call in "${chosen[@]}"; do
        count=0
        wrong=
        every 20
        for ((when = 1; when < 400; when += first + when * longer / 20)); do
            must blockmig move "qmp:$tmp/g/qmp" "$tmp/$there" "${patient[@]}" --keep-failback=1h --delete-source --json
            id=$(jq -r .job <<<"$out")
            at_exit end_keeper "$id"
            if ! killed_at "$call" "$when" "$action"; then
                [ "$action" = failback ] || { REPLY=$here here=$there there=$REPLY; }
                break
            fi
            count=$((count + 1))
            wrong+=$(judge "$call $when" "$action")
            [ -z "$wrong" ] || break 2
            [ "$action" = failback ] || { REPLY=$here here=$there there=$REPLY; }
        done
        is "$wrong" "" "$action: killed at $count calls of $call"
    done
done
is "$wrong" "" "the last one"
stop_guest g
like "$(host_verdict g 0 "$tmp/$here/one.qcow2" qcow2)" '^OK [1-9]' "the host agrees for the first"
like "$(host_verdict g 1 "$tmp/$here/two.raw" raw)" '^OK [1-9]' "and for the second"
image_clean "$tmp/$here/one.qcow2" "qemu-img check finds nothing"
done_testing
