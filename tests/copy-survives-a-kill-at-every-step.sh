#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Killed exactly at a system call, one after the other, also in the proof and while names are taken: the same
# command again finishes the copy.
. "${srcdir:-.}/tests/lib.sh"
need_tool qemu-img qemu-io jq strace
use_seed
run strace -o "$tmp/trace" true
[ "$status" -eq 0 ] || skip_all "strace cannot trace here"

must qemu-img create -q -f qcow2 "$tmp/base" 20M
must qemu-io -f qcow2 -c "write -P 3 1M 5M" "$tmp/base"
must qemu-img create -q -f qcow2 -b "$tmp/base" -F qcow2 "$tmp/top"
must qemu-io -f qcow2 -c "write -P 4 3M 100k" -c "write -z 5M 1M" "$tmp/top"
random_file "$tmp/old" 1M 3

# killed_at CALL COUNT ARGUMENTS...: false if the command ended before its COUNTth CALL ($only: of that file).
only=
killed_at()
{
    BLOCKMIG_STATE_DIR=$tmp/state.kill timeout 300 strace -f -qq -o /dev/null ${only:+-P "$only"} -e trace="$1" \
        -e inject="$1:signal=SIGKILL:when=$2" "$blockmig" copy -q "${@:3}" >/dev/null 2>&1 3>&-
    [ $? -ne 0 ]
}

# judge WHERE ARGUMENTS...
judge()
{
    local where=$1 states
    shift
    export BLOCKMIG_STATE_DIR=$tmp/state.kill
    "$blockmig" copy -q "$@" >"$tmp/err" 2>&1 3>&- || echo "$where: $(cat "$tmp/err")"
    qemu-img compare -q "$tmp/top" "$tmp/out/t" 3>&- || echo "$where: different"
    [ "$(qemu-img info --output=json "$tmp/out/t" 3>&- | jq -r .format)" = raw ] ||
        qemu-img check -q "$tmp/out/t" >/dev/null 2>&1 3>&- || echo "$where: not clean"
    ! compgen -G "$tmp/state.kill/receipts/*.tmp" || echo "$where: half a receipt is left"
    ! compgen -G "$tmp/out/*.blockmig-part" || echo "$where: a part is left"
    states=$("$blockmig" job list --json | jq -c '[.jobs[].state] | unique - ["discarded"]')
    [ "$states" = '["done"]' ] || echo "$where: jobs are $states"
}

pick 1 1000
part=$REPLY
for mode in "flat:-O qcow2" "keep:--chain=keep" "force:--force -O qcow2" "raw:-O raw" \
    "files:-O vmdk -o subformat=twoGbMaxExtentSparse" "stream:-O vmdk -o subformat=streamOptimized"; do
    read -ra options <<<"${mode#*:}"
    wrong=
    count=0
    for call in fdatasync fsync rename renameat2 ftruncate fchmod unlink pwrite64; do
        every 18
        for ((when = 1; when < 200; when += first + when / part)); do
            rm -rf "$tmp/out" "$tmp/state.kill"
            mkdir "$tmp/out"
            [ "${mode%%:*}" != force ] || cp "$tmp/old" "$tmp/out/t"
            killed_at "$call" "$when" "${options[@]}" "$tmp/top" "$tmp/out/t" || break
            count=$((count + 1))
            wrong+=$(judge "$call $when" "${options[@]}" "$tmp/top" "$tmp/out/t")
        done
    done
    is "$wrong" "" "${mode%%:*}: killed at $count calls"
done

# What was proved, but not given its name, is copied again if it is not what it was; what has its name, by --force.
for last in "renameat2 t.blockmig-part" "fsync t"; do
    rm -rf "$tmp/out" "$tmp/state.kill"
    mkdir "$tmp/out"
    only=$tmp/out
    [ "${last% *}" = fsync ] || only=
    killed_at "${last% *}" 1 -O raw "$tmp/top" "$tmp/out/t"
    must qemu-io -f raw -c "write -P 9 3M 512" "$tmp/out/${last#* }"
    [ -z "$only" ] || fails_with 6 "a copy that changed is not replaced" env BLOCKMIG_STATE_DIR="$tmp/state.kill" \
        "$blockmig" copy -q -O raw "$tmp/top" "$tmp/out/t"
    is "$(judge "$last" ${only:+--force} -O raw "$tmp/top" "$tmp/out/t")" "" "$last: changed after a kill there"
done

# The source may be gone, or only some of its files, before the job has ended.
move=(--delete-source -O qcow2 "$tmp/in/s.vmdk" "$tmp/out/t")
for last in "unlink in/s.vmdk" "unlink in/s-s001.vmdk" "fsync in"; do
    rm -rf "$tmp/in" "$tmp/out" "$tmp/state.kill"
    mkdir "$tmp/in" "$tmp/out"
    must "$blockmig" copy -q --verify=none -O vmdk -o subformat=twoGbMaxExtentSparse "$tmp/top" "$tmp/in/s.vmdk"
    only=$tmp/${last#* }
    killed_at "${last% *}" 1 "${move[@]}"
    left=$(ls "$tmp/in")
    is "$(judge "$last" "${move[@]}")$(ls "$tmp/in")" "" "$last: killed there, with \"${left//$'\n'/ }\" left"
done
done_testing
