#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What an agent gives and takes over HTTP: files below its datastores and nothing else, whatever it is asked.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"

local_agent
random_file "$tmp/store/disk.raw" 3M 1
random_file "$tmp/frozen/old.raw" 1M 2
random_file "$tmp/secret" 1M 3

ask GET /v1
is "$http" 200 "it says who it is"
is "$(jq -r '.agent, .api, (.datastores | join(" "))' <<<"$out" | paste -sd' ')" "blockmigd 1 store frozen" "and what it has"
is "$(jq -r .boot <<<"$out")" "$(cat /proc/sys/kernel/random/boot_id)" "since which boot of its host"
ask GET /v1/datastores/store
is "$(jq '.available > 0 and .read_only == false' <<<"$out")" true "how much room there is"
ask GET /v1/datastores/none
is "$http" 409 "a datastore that is not there is refused"

# ---- names ------------------------------------------------------------------------------------------

ask GET /v1/datastores/store/files/disk.raw
is "$(jq -r '.kind, .size' <<<"$out" | paste -sd' ')" "file 3145728" "a file is described"
ask GET /v1/datastores/store/files/none
is "$(jq -r .kind <<<"$out")" none "one that is not there is none"
must ln -s "$tmp/secret" "$tmp/store/link"
must ln -s "$tmp" "$tmp/store/up"
must ln "$tmp/secret" "$tmp/store/second"
must mkfifo "$tmp/store/fifo"
must mkdir "$tmp/store/dir"
for name in ../secret up/secret link second fifo dir . .. dir/../../secret /etc/passwd '' 'a\u0000b'; do
    for mode in read write create; do
        open_file store "$name" $mode
        [ "$http" -ge 400 ] && [ -z "$handle" ]
        is $? 0 "'$name' is not opened ($mode): $(jq -r .error <<<"$out")"
    done
    [ "$name" = dir ] || unlike "$out" "[Nn]o such file" "and that is not for want of a file"
done
for path in ..%2fsecret %2e%2e/secret up/secret second link fifo; do
    ask DELETE /v1/datastores/store/files/$path
    [ "$http" -ge 400 ]
    is $? 0 "$path is not removed"
done
check "what lies outside is still there" test -s "$tmp/secret"
ask POST /v1/datastores/store/files/disk.raw -d '{"rename": "../taken"}'
is "$http" 400 "nothing gets a name outside"
check "nothing did" test ! -e "$tmp/taken"
ask POST /v1/datastores/store/files/disk.raw -d '{"rename": "second"}'
is "$(jq .taken <<<"$out")" true "nor one that somebody has"
check "the file keeps its own" test -e "$tmp/store/disk.raw"
ask POST /v1/datastores/store/files/disk.raw -d '{"rename": "renamed.raw"}'
is "$(jq .taken <<<"$out") $(ls "$tmp/store/renamed.raw")" "false $tmp/store/renamed.raw" "a free one it gets"
ask DELETE /v1/datastores/store/files/renamed.raw
is "$http" 200 "a file is removed"
ask DELETE /v1/datastores/store/files/renamed.raw
is "$http" 200 "also if it is gone already"

# ---- content ----------------------------------------------------------------------------------------

frames="$srcdir/tests/make-frames.py"
open_file store new.raw create
is "$http" 200 "a file is made"
"$frames" data 0 "$tmp/secret" zero 1048576 1048576 zstd 2097152 "$tmp/secret" >"$tmp/stream"
ask POST "/v1/handles/$handle/extents" --data-binary "@$tmp/stream"
is "$http $(jq -c . <<<"$out")" '200 {"frames":3,"bytes":3145728}' "frames are written"
cat "$tmp/secret" <(head -c 1M /dev/zero) "$tmp/secret" >"$tmp/model"
check "to where they belong" cmp "$tmp/store/new.raw" "$tmp/model"
run curl -s --unix-socket "$tmp/agent.sock" -o "$tmp/digests" "http://agent/v1/handles/$handle/digests?offset=0&length=3145728&chunk=1048576"
is "$(xxd -p -c 16 "$tmp/digests" | paste -sd' ')" \
    "$("$frames" digest "$tmp/model" 1048576 | paste -sd' ')" "digests are those of the medium"
run curl -s --unix-socket "$tmp/agent.sock" -o "$tmp/back" "http://agent/v1/handles/$handle/extents?offset=1000&length=2500000"
"$frames" unpack <"$tmp/back" >"$tmp/piece"
check "and any range comes back" cmp "$tmp/piece" <(tail -c +1001 "$tmp/model" | head -c 2500000)
for level in -5 1 99; do
    run curl -s --unix-socket "$tmp/agent.sock" -o "$tmp/back" "http://agent/v1/handles/$handle/extents?offset=0&length=3145728&level=$level"
    "$frames" unpack <"$tmp/back" >"$tmp/piece"
    check "compressed with level $level, too" cmp "$tmp/piece" "$tmp/model"
done
ask GET "/v1/handles/$handle/status?offset=0&length=3145728"
is "$(jq '[.[][0]] | add' <<<"$out")" 3145728 "its map covers it"

new=$handle
must cp "$tmp/model" "$tmp/frozen/seed.raw"
open_file frozen seed.raw read
head -c 100000 /dev/zero >"$tmp/zeros"
dd if="$tmp/model" of="$tmp/piece" bs=1 skip=5000 count=70000 status=none
nobody=00112233445566778899aabbccddeeff far=9223372036854775000
"$frames" same 10000 "$handle:5000:$tmp/piece" same 200000 "$handle:5000:$tmp/zeros" same 400000 "$handle:3145000:$tmp/piece" \
    same 500000 "$nobody:0:$tmp/piece" same 600000 "$handle:1048576:$tmp/zeros" >"$tmp/stream"
ask POST "/v1/handles/$new/extents" --data-binary "@$tmp/stream"
is "$http $(jq -c '[.frames, .same, .gone]' <<<"$out")" '200 [5,"10001",true]' "what another file has is written, if it has it"
dd if="$tmp/piece" of="$tmp/model" bs=1 seek=10000 conv=notrunc status=none
dd if="$tmp/zeros" of="$tmp/model" bs=1 seek=600000 conv=notrunc status=none
check "and nothing else" cmp "$tmp/store/new.raw" "$tmp/model"
"$frames" same 0 "$handle:$far:$tmp/piece" >"$tmp/stream"
ask POST "/v1/handles/$new/extents" --data-binary "@$tmp/stream"
is "$http" 409 "beyond what a file can have there is nothing"
handle=$new
before=$(sha256sum <"$tmp/store/new.raw")

for broken in digest magic kind length offset cut long; do
    "$frames" "broken-$broken" 0 "$tmp/secret" >"$tmp/stream"
    ask POST "/v1/handles/$handle/extents" --data-binary "@$tmp/stream"
    [ "$http" -ge 400 ] && [ "$http" -lt 500 ]
    is $? 0 "a stream with a wrong $broken is refused: $(jq -r .error <<<"$out")"
done
is "$(sha256sum <"$tmp/store/new.raw")" "$before" "and nothing of it written"

again='{"datastore": "store", "path": "again.raw", "mode": "create", "handle": "00112233445566778899aabbccddeeff"}'
run curl -s --unix-socket "$tmp/agent.sock" -H 'Blockmig-Session: 0123456789abcdef0123456789abcdef' \
    http://agent/v1/handles -d "$again" --next -s --unix-socket "$tmp/agent.sock" \
    -H 'Blockmig-Session: 0123456789abcdef0123456789abcdef' http://agent/v1/handles -d "$again"
is "$(jq -s 'length == 2 and .[0] == .[1] and .[0].handle == "00112233445566778899aabbccddeeff"' <<<"$out")" true \
    "who did not hear the answer and asks again gets what he has opened"

open_file store new.raw write
is "$http" 409 "what somebody writes is not opened again"
like "$out" "lock" "because of its lock"
open_file frozen old.raw write
is "$http" 409 "a read-only datastore is not written"
open_file frozen old.raw read
is "$http" 200 "but read"
ask POST "/v1/handles/$handle/extents" --data-binary "@$tmp/stream"
[ "$http" -ge 400 ]
is $? 0 "also then not written"
ask DELETE /v1/datastores/frozen/files/old.raw
is "$http" 409 "nor is anything removed"

# ---- handles that linger ----------------------------------------------------------------------------

# holds FILE: the agent has it open.
holds()
{
    find "/proc/$agent/fd" -lname "$1" | grep -q .
}

random_file "$tmp/store/linger.raw" 64K 4
ask POST /v1/handles -d '{"datastore": "store", "path": "linger.raw", "mode": "read", "linger": 3}'
brief=$(jq -r .handle <<<"$out")
ask GET "/v1/handles/$brief"
is "$http" 200 "a handle that lingers outlives its connection"
check "with its file" holds "$tmp/store/linger.raw"
check "which is closed when its time is over, without anybody asking" wait_for 10 eval '! holds "$tmp/store/linger.raw"'
ask GET "/v1/handles/$brief"
is "$http" 404 "and then there is no such handle"
ask POST /v1/handles -d '{"datastore": "store", "path": "linger.raw", "mode": "read", "linger": 60}'
check "the agent's end does not wait for one" holds "$tmp/store/linger.raw"

# ---- nonsense ---------------------------------------------------------------------------------------

for body in '' '{' '[]' '"x"' '{"datastore": 1}' '{"datastore": "store", "path": "x", "mode": "steal"}' \
    '{"datastore": "store", "path": ["x"], "mode": "read"}' "$(printf '[%.0s' {1..5000})"; do
    ask POST /v1/handles -d "$body"
    is "$http" 400 "a body of ${body:0:30} is refused"
done
head -c 70000 /dev/zero | tr '\0' x >"$tmp/long"
ask POST /v1/handles --data-binary "@$tmp/long"
is "$http" 400 "and one that is too long"
ask POST /v1/handles/00/flush
is "$http" 404 "a handle that nobody has is not found"
for query in 'offset=-1&length=5' 'offset=0' 'offset=0&length=99999999999' 'offset=99999999999999999999&length=1' \
    'offset=0&length=0'; do
    ask GET "/v1/handles/$handle/extents?$query"
    is "$http" 400 "extents?$query is refused"
done
ask GET "/v1/handles/$handle/digests?offset=0&length=1000000&chunk=1"
is "$http" 400 "and digests of bytes"
ask TRACE /v1
[ "$http" -ge 400 ]
is $? 0 "what it does not know it says so"
# A connection that is cut in a request leaves nothing behind.
(exec 3<>/dev/null; printf 'POST /v1/handles HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{' | timeout 1 curl -s --unix-socket "$tmp/agent.sock" telnet://agent)
ask GET /v1
is "$http" 200 "after all that it still answers"
is "$(find "$tmp" -newer "$tmp/agent.conf" -name 'taken*')" "" "and made nothing outside"

# ---- its end ----------------------------------------------------------------------------------------

must kill "$agent"
wait "$agent"
is $? 0 "it ends when told to"
local_agent
ask GET /v1
is "$http" 200 "and the next one takes its socket"
fails_with 3 "while it answers there is no other" "$builddir/tools/blockmigd" --config "$tmp/agent.conf"
printf '[agent]\nsocket=/x\nalow=a\n' >"$tmp/bad.conf"
fails_with 2 "a configuration with an unknown key" "$builddir/tools/blockmigd" --check --config "$tmp/bad.conf"
like "$err" "alow" "is told"
printf '[agent]\nlisten=127.0.0.1:1\n' >"$tmp/bad.conf"
fails_with 2 "and one that listens without certificates" "$builddir/tools/blockmigd" --check --config "$tmp/bad.conf"
done_testing
