#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Two hosts and one unit: what one reserves the other cannot write, and is told by whom; preempting fences.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-iscsi.sh"
need_root
need_tool unshare jq iscsi-inq qemu-img qemu-io
start_tgtd
make_target
truncate -s 64M "$tmp/unit"
add_lun 1 "$tmp/unit"
uri=$REPLY
random_file "$tmp/source.raw" 64M 1

# key_of HOST: as show says it.
key_of()
{
    as_host "$1" "$blockmig" reservation show --json "$uri" | jq -r .key
}

one=$(key_of one)
two=$(key_of two)
like "$one" '^0x[0-9a-f]{16}$' "a host has a key"
is "$(key_of one)" "$one" "the same every time"
check "another host has another" test "$one" != "$two"

run_ok "show works without reservations" blockmig reservation show "$uri"
like "$out" 'none: whoever reaches' "and says that anybody may write"
like "$out" 'registered +nobody' "and that nobody is registered"

run_ok "the first host takes the unit" as_host one "$blockmig" reservation take "$uri"
like "$out" "write exclusive, registrants only, .* with key $one" "and is told to hold it"
run_ok "taking it again changes nothing" as_host one "$blockmig" reservation take "$uri"
run_ok "the other host sees who holds it" as_host two "$blockmig" reservation show --json "$uri"
is "$(jq -r .holder <<<"$out")" "$one" "by its key"

fails_with 3 "the other host cannot take it" as_host two "$blockmig" reservation take "$uri"
like "$err" "reservation conflict: reserved by .*$one" "and is told by whom it is held"
is "$(as_host two "$blockmig" reservation show --json "$uri" | jq '.registrants | length')" 1 \
    "and leaves no registration behind"
fails_with 3 "nor release it" as_host two "$blockmig" reservation release "$uri"
fails_with 3 "nor copy onto it" as_host two "$blockmig" copy -f raw "$tmp/source.raw" "$uri"
like "$err" "reserved by .*$one" "which is told before anything is written"
check "nothing was written" cmp -n 1048576 "$tmp/unit" /dev/zero
run_ok "reading is allowed" as_host two "$blockmig" info -f raw "$uri"

run_ok "the first host copies onto it" as_host one "$blockmig" copy -f raw "$tmp/source.raw" "$uri"
check "and it holds the source" cmp "$tmp/source.raw" "$tmp/unit"
is "$(as_host one "$blockmig" reservation show --json "$uri" | jq '.registrants | length')" 1 \
    "the copy's own registration is gone with it"

# Fenced in the middle of a copy.
as_host one "$blockmig" copy --force --restart --bandwidth=8MiB/s -f raw "$tmp/source.raw" "$uri" >"$tmp/fenced.out" 2>&1 3>&- &
fenced=$!
at_exit stop_process "$fenced"
registered()
{
    [ "$(as_host two "$blockmig" reservation show --json "$uri" | jq '.registrants | length')" -eq 2 ]
}
wait_for 20 registered || not_ok "the copy registers its session"
fails_with 3 "preempting a key that nobody has is refused" as_host two "$blockmig" reservation take --preempt 0x1234 "$uri"
run_ok "the other host preempts" as_host two "$blockmig" reservation take --preempt "$one" "$uri"
wait "$fenced"
is $? 1 "the copy of the first host ends at once"
like "$(cat "$tmp/fenced.out")" "reserved by .*key $two, .*conflict" "and says who has the unit now"
run_ok "the other host holds it alone" as_host two "$blockmig" reservation show --json "$uri"
is "$(jq -c '[.registrants[].key]' <<<"$out")" "[\"$two\"]" "no key of the first host is left"

run_ok "--force takes it from whoever holds it" as_host one "$blockmig" reservation take --force "$uri"
is "$(as_host two "$blockmig" reservation show --json "$uri" | jq -r .holder)" "$one" \
    "so the first host has it again"

# A copy that is killed leaves its registration: release takes that away, too.
as_host one "$blockmig" copy --force --restart --bandwidth=8MiB/s -f raw "$tmp/source.raw" "$uri" >"$tmp/killed.out" 2>&1 3>&- &
killed=$!
wait_for 20 registered || not_ok "the copy registers its session"
kill -KILL "$killed"
wait "$killed" 2>/dev/null
run_ok "the first host releases it" as_host one "$blockmig" reservation release "$uri"
run_ok "show" blockmig reservation show --json "$uri"
is "$(jq -c '[.reserved, (.registrants | length)]' <<<"$out")" '[false,0]' "nothing is left"
fails_with 3 "there is nothing to release any more" as_host one "$blockmig" reservation release "$uri"

run_ok "a key may be given" blockmig reservation take --key 0x2a "$uri"
is "$(blockmig reservation show --json "$uri" | jq -r '.registrants[0].key')" 0x000000000000002a "and is used"
run_ok "and released" blockmig reservation release --key 42 "$uri"

# What has none.
must truncate -s 1M "$tmp/file"
fails_with 3 "a file has no reservations" blockmig reservation show "$tmp/file"
if losetup -f >/dev/null 2>&1; then
    loop_device "$tmp/file"
    fails_with 3 "nor has a loop device" blockmig reservation show "$REPLY"
    fails_with 3 "which cannot be taken" blockmig reservation take "$REPLY"
fi
fails_with 2 "a bad key is a usage error" blockmig reservation take --key 0 "$uri"
fails_with 2 "as is a bad action" blockmig reservation steal "$uri"
fails_with 2 "and --force with show" blockmig reservation show --force "$uri"
done_testing
