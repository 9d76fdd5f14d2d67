#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What goes through a tunnel of an agent may be compressed: it comes out as it was, at once, and what was changed on its
# way ends the tunnel.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-agent.sh"
need_tool python3 xxhsum zstd

more_datastores="[machines]
directory=$tmp/sockets
libvirt=$tmp/libvirt"
must mkdir -m 700 "$tmp/sockets"
local_agent
id=0123456789abcdef0123456789abcdef

# listener: accepts one connection and notes what comes, and that it has ended.
listener()
{
    rm -f "$tmp/libvirt" "$tmp/came" "$tmp/ended"
    start python3 -c '
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
tunnel = server.accept()[0]
with open(sys.argv[2], "wb", buffering=0) as came:
    while data := tunnel.recv(65536):
        came.write(data)
open(sys.argv[3], "w")
' "$tmp/libvirt" "$tmp/came" "$tmp/ended"
    wait_for 10 test -S "$tmp/libvirt"
    start curl -sN --unix-socket "$BLOCKMIG_AGENT_SOCKET" -D "$tmp/head" -o /dev/null \
        "http://agent/v1/tunnels/libvirt/$id"
    wait_for 10 test -e "$tmp/came"
}

# send STREAM: the answer is in out, with its status.
send()
{
    run curl -s --max-time 60 --unix-socket "$BLOCKMIG_AGENT_SOCKET" -T "$1" -X POST -w '\n%{http_code}' \
        -H 'Expect:' -H 'Transfer-Encoding: chunked' "http://agent/v1/framed-tunnels/libvirt/$id"
}

random_file "$tmp/noise" 300K 3
seq 60000 >"$tmp/text"
"$srcdir/tests/make-frames.py" zstd 0 "$tmp/text" data 0 "$tmp/noise" zstd 0 "$tmp/text" >"$tmp/stream"
cat "$tmp/text" "$tmp/noise" "$tmp/text" >"$tmp/content"

listener
like "$(cat "$tmp/head")" "Blockmig-Tunnel: framed" "an agent says that it takes frames"
send "$tmp/stream"
is "${out##*$'\n'}" 200 "they are taken" || diag "$out"
wait_for 10 test -e "$tmp/ended"
run cmp "$tmp/content" "$tmp/came"
is "$status" 0 "and what they hold comes out"

listener
mkfifo "$tmp/slow"
send "$tmp/slow" &
exec 9>"$tmp/slow"
"$srcdir/tests/make-frames.py" zstd 0 "$tmp/text" >&9
check "a frame is passed on before the next one comes" wait_for 10 cmp -s "$tmp/text" "$tmp/came"
exec 9>&-
wait $!
wait_for 10 test -e "$tmp/ended"

# The client goes on, and it does not help.
for what in digest magic kind; do
    listener
    send "$tmp/slow" &
    exec 9>"$tmp/slow"
    "$srcdir/tests/make-frames.py" zstd 0 "$tmp/text" "broken-$what" 0 "$tmp/noise" zstd 0 "$tmp/text" >&9
    check "a bad $what ends the tunnel" wait_for 10 test -e "$tmp/ended"
    run cmp "$tmp/text" "$tmp/came"
    is "$status" 0 "a bad $what: neither it nor what comes behind it is passed on"
    exec 9>&-
    wait $!
done

listener
"$srcdir/tests/make-frames.py" zero 0 4096 >"$tmp/stream"
send "$tmp/stream"
check "zeros without data are none of a tunnel's" test "${out##*$'\n'}" -ge 400
wait_for 10 test -e "$tmp/ended"
is "$(stat -c %s "$tmp/came")" 0 "and not made up"
done_testing
