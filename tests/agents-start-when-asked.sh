#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An agent takes the sockets that systemd has opened for it, and leaves them to the next one.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"
need_tool systemd-analyze

port=16617
authority "$tmp/ca"
server_certificate "$tmp/server"
client_certificate "$tmp/client" client
must mkdir "$tmp/store"
cat >"$tmp/agent.conf" <<END
[agent]
tls-directory=$tmp/server
allow=client
[datastore store]
directory=$tmp/store
END
export BLOCKMIG_AGENT_SOCKET=$tmp/agent.sock BLOCKMIG_AGENT_TLS=$tmp/client
fails_with 2 "without a socket from anywhere it does not start" "$builddir/tools/blockmigd" --config "$tmp/agent.conf"

# activated SOCKETS...
activated()
{
    start "$srcdir/tests/helpers/activate.py" "$@" -- "$builddir/tools/blockmigd" --config "$tmp/agent.conf" >"$tmp/log" 2>"$tmp/err"
}

activated "unix:$tmp/agent.sock" "tcp:127.0.0.1:$port"
launcher=$REPLY
wait_for 10 test -S "$tmp/agent.sock"
is "$(cat "$tmp/log")" "" "it is not started before somebody asks"
random_file "$tmp/disk.raw" 8M 1
run_ok "who asks over TLS is served" blockmig copy -q "$tmp/disk.raw" "blockmig://localhost:$port/store/tls.raw"
check "and so is who asks at the socket" cmp "$tmp/disk.raw" "$tmp/store/tls.raw"
ask GET /v1
is "$http" 200 "by the same agent"
is "$(grep -c started "$tmp/log")" 1 "which was started once"

kill -TERM "$(sed -n 's/^started //p' "$tmp/log")"
wait_for 20 grep -q '^ended' "$tmp/log"
is "$(tail -1 "$tmp/log")" "ended 0" "it ends"
ask GET /v1
is "$http" 200 "and the next one takes the same socket"
is "$(grep -c started "$tmp/log")" 2 "which is another"

start "$builddir/tools/blockmig" copy -q --bandwidth=6MiB/s "$tmp/disk.raw" "blockmig://localhost:$port/store/ridden.raw"
copy=$REPLY
wait_for 20 test -s "$tmp/store/ridden.raw.blockmig-part"
kill -TERM "$(sed -n 's/^started //p' "$tmp/log" | tail -1)"
wait "$copy"
is $? 0 "a copy rides over that"
check "and is right" cmp "$tmp/disk.raw" "$tmp/store/ridden.raw"
is "$(grep -c started "$tmp/log")" 3 "with a third one"

pid=$(sed -n 's/^started //p' "$tmp/log" | tail -1)
kill -HUP "$pid"
wait_for 10 grep -q "read anew" "$tmp/err"
run_ok "after its configuration was read anew, too" blockmig info "blockmig://localhost:$port/store/tls.raw"
stop_process "$launcher"

activated "datagram:$tmp/other.sock"
wait_for 10 grep -q '^ended' "$tmp/log"
is "$(tail -1 "$tmp/log")" "ended 2" "what is no socket to listen at"
like "$(cat "$tmp/err")" "descriptor 3 is not a socket" "is refused"
sed -i /tls-directory/d "$tmp/agent.conf"
activated "tcp:127.0.0.1:$port"
wait_for 10 eval ": </dev/tcp/127.0.0.1/$port"
wait_for 10 grep -q '^ended' "$tmp/log"
is "$(tail -1 "$tmp/log")" "ended 2" "and so is TCP without certificates"
like "$(cat "$tmp/err")" "tls-directory" "which are missed"

must mkdir "$tmp/units"
must cp "$srcdir/tools/blockmigd.socket" "$tmp/units/"
sed "s|^ExecStart=.*/blockmigd|ExecStart=$builddir/tools/blockmigd|" "$builddir/tools/blockmigd.service" >"$tmp/units/blockmigd.service"
run systemd-analyze verify --man=no "$tmp/units/blockmigd.socket" "$tmp/units/blockmigd.service"
is "$status $(grep blockmigd <<<"$err")" "0 " "systemd finds nothing wrong with the units"
done_testing
