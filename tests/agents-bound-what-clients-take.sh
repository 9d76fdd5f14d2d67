#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Clients that hold connections and do nothing with them are cut off; those that ask too often are put off.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"

# ---- slow -------------------------------------------------------------------------------------------

port=16613
authority "$tmp/ca"
server_certificate "$tmp/server"
client_certificate "$tmp/client" client
client_certificate "$tmp/stranger" stranger
must mkdir "$tmp/store"
cat >"$tmp/slow.conf" <<END
[agent]
listen=127.0.0.1:$port
tls-directory=$tmp/server
allow=client
patience=3
[datastore store]
directory=$tmp/store
END
start_agent "$tmp/slow.conf"
random_file "$tmp/store/large.raw" 16M 1
random_file "$tmp/content" 256K 2
"$srcdir/tests/make-frames.py" data 0 "$tmp/content" >"$tmp/stream"
run timeout 100 "$srcdir/tests/helpers/slow-clients.py" $port "$tmp/client" store large.raw "$tmp/stream" 3
diag "$out"
for client in silent silent_after_the_handshake slow_head slow_body unread_answer sparing_answer; do
    like "$out" "^$client cut " "${client//_/ }: it is cut off"
done
for client in slow_but_sure seldom; do
    like "$out" "^$client served " "${client//_/ }: it is served"
done
check "what came slowly is right" cmp "$tmp/store/slow.raw" "$tmp/content"
run curl -sv --cacert "$tmp/ca/ca-cert.pem" --cert "$tmp/stranger/client-cert.pem" --key "$tmp/stranger/client-key.pem" \
    "https://localhost:$port/v1" "https://localhost:$port/v1"
is "$(grep -c '^< HTTP/1.1 403' <<<"$err") $(grep -ci '^\* Connected to' <<<"$err")" "2 2" "a stranger keeps no connection"

# ---- often ------------------------------------------------------------------------------------------

more_agent="requests-per-second=10" local_agent
urls=()
for i in {1..50}; do
    urls+=(http://agent/v1)
done
run curl -sv --unix-socket "$tmp/agent.sock" "${urls[@]}"
like "$err" "^< HTTP/1.1 200" "who asks often is answered"
like "$err" "^< HTTP/1.1 429" "who asks too often is put off"
is "$(grep -c '^< Retry-After: 1' <<<"$err")" "$(grep -c '^< HTTP/1.1 429' <<<"$err")" "and told for how long"
like "$out" "more than 10 requests in a second" "and why"
random_file "$tmp/disk.raw" 1M 3
run_ok "a copy makes its way" blockmig copy -q "$tmp/disk.raw" "$store/disk.raw"
check "to its end" cmp "$tmp/disk.raw" "$tmp/store/disk.raw"
for wrong in requests-per-second=0 requests-per-second=x patience=-1 patience=3601; do
    printf '[agent]\nsocket=/x\n%s\n' "$wrong" >"$tmp/bad.conf"
    fails_with 2 "$wrong" "$builddir/tools/blockmigd" --check --config "$tmp/bad.conf"
    like "$err" "$wrong: 1 to" "is not a limit"
done

# ---- what our client does about it ------------------------------------------------------------------

stop_process "$agent"
local_agent
for code in 429 503; do
    start "$srcdir/tests/helpers/lying-agent.py" "$tmp/later-$code.sock" "$tmp/agent.sock" "later-$code"
    wait_for 10 test -S "$tmp/later-$code.sock"
    BLOCKMIG_AGENT_SOCKET=$tmp/later-$code.sock run_ok "$code: it comes back when it was told to, and not before" \
        blockmig copy -q "$tmp/disk.raw" "$store/later-$code.raw"
    check "$code: to its end" cmp "$tmp/disk.raw" "$tmp/store/later-$code.raw"
done
start "$srcdir/tests/helpers/lying-agent.py" "$tmp/never.sock" "$tmp/agent.sock" never
wait_for 10 test -S "$tmp/never.sock"
BLOCKMIG_AGENT_TIMEOUT=2 BLOCKMIG_AGENT_SOCKET=$tmp/never.sock fails_with 8 "an agent that is ending for ever" \
    blockmig copy -q "$tmp/disk.raw" "$store/never.raw"
done_testing
