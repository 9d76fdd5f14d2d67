#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A host that is fenced while one of its writes is on its way: PREEMPT AND ABORT keeps that from the medium; of a target
# that does not know it, it is told that it may still come.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_root
need_tool unshare jq
random_file "$tmp/source.raw" 4M 1

keys()
{
    as_host two "$blockmig" reservation show --json "$uri" | jq -c '[.holder, [.registrants[].key]]'
}

# fenced STUB-OPTION: a write at 0 is held until its host is fenced.  Sets told to what the one that fences it says.
fenced()
{
    local option=$1
    must truncate -s 0 "$tmp/unit"
    must truncate -s 4M "$tmp/unit"
    start_stub "$tmp/unit" "reserve=$option" "log=$tmp/log" 8a@0=hold
    uri=$REPLY
    local one two
    one=$(as_host one "$blockmig" reservation show --json "$uri" | jq -r .key)
    two=$(as_host two "$blockmig" reservation show --json "$uri" | jq -r .key)
    run_ok "$option: a host takes the unit" as_host one "$blockmig" reservation take "$uri"
    as_host one "$blockmig" copy -f raw "$tmp/source.raw" "$uri" >"$tmp/copy.out" 2>&1 3>&- </dev/null &
    local copy=$!
    at_exit stop_process "$copy"
    wait_for 30 grep -q '^8a 0 ' "$tmp/log" || must false "a write is on its way"
    run_ok "$option: another one preempts" as_host two "$blockmig" reservation take --preempt "$one" "$uri"
    told=$err
    wait "$copy"
    check "$option: the copy of the first host fails" test $? -ne 0
    is "$(keys)" "[\"$two\",[\"$two\"]]" "$option: the other one holds it alone"
    fails_with 3 "$option: the first cannot write any more" as_host one "$blockmig" copy --force -f raw "$tmp/source.raw" "$uri"
}

fenced full
unlike "$told" "cannot abort" "with commands aborted nothing is left open"
run_ok "what was on its way is not on the medium" cmp -n 4194304 "$tmp/unit" /dev/zero
stop_process "$stub"

fenced simple
like "$told" "cannot abort commands \(PREEMPT AND ABORT\)" "a target that cannot abort is told of"
run cmp -s -n 512 "$tmp/unit" "$tmp/source.raw"
is "$status" 0 "and what was on its way came"
done_testing
