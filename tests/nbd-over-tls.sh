#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Exports over TLS: certificates laid out as QEMU's, and pre-shared keys; whoever is not who he should be is refused.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
. "$srcdir/tests/lib-tls.sh"
need_tool psktool

random_file "$tmp/disk.raw" 16M 1
port=10894

authority "$tmp/ca"
server_certificate "$tmp/server"
client_certificate "$tmp/client" client
authority "$tmp/others"

# over_tls WHAT URI: onto the server on $tmp/target, and back.
over_tls()
{
    run_ok "$1: written" blockmig copy -q -f raw "$tmp/disk.raw" "$2"
    check "$1: arrived" cmp "$tmp/disk.raw" "$tmp/target"
    rm -f "$tmp/back"
    run_ok "$1: read" blockmig copy -q -f raw "$2" "$tmp/back"
    check "$1: came back" cmp "$tmp/disk.raw" "$tmp/back"
}

must truncate -s 16M "$tmp/target"
start qemu-nbd -t -f raw -b 127.0.0.1 -p $port -x disk --object "tls-creds-x509,id=tls,dir=$tmp/server,endpoint=server,verify-peer=yes" \
    --tls-creds tls "$tmp/target"
server=$REPLY
certificates=nbds://localhost:$port/disk?tls-certificates=$tmp/client
wait_for 10 nbdinfo "$certificates" || must false "no server"
over_tls "certificates" "$certificates"
fails_with 3 "a server of another authority" blockmig info "nbds://localhost:$port/disk?tls-certificates=$tmp/others"
like "$err" "certificate" "is not trusted"
fails_with 3 "without TLS" blockmig info "nbd://localhost:$port/disk"
stop_process "$server"

must truncate -s 0 "$tmp/target"
must truncate -s 16M "$tmp/target"
must psktool -u alice -p "$tmp/keys.psk"
must psktool -u alice -p "$tmp/wrong.psk"
serve_psk()
{
    start nbdkit -f -p $port -i 127.0.0.1 --tls=require --tls-psk="$tmp/keys.psk" file "$tmp/target"
    server=$REPLY
    wait_for 10 nbdinfo "$key" || must false "no server"
}
key="nbds://alice@localhost:$port/?tls-psk-file=$tmp/keys.psk"
serve_psk
over_tls "a shared key" "$key"
fails_with 3 "another key" blockmig info "nbds://alice@localhost:$port/?tls-psk-file=$tmp/wrong.psk"
secret=$(cut -d: -f2 "$tmp/keys.psk")
is "$(grep -rl "$secret" "$tmp/state")" "" "the key is nowhere in the journal"
unlike "$err" "$secret" "nor in a message"
stop_process "$server"
done_testing
