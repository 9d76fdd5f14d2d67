#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Exports over TLS: certificates laid out as QEMU's, and pre-shared keys; whoever is not who he should be is refused.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-nbd.sh"
need_tool certtool psktool

random_file "$tmp/disk.raw" 16M 1
port=10894

# certificate DIRECTORY NAME TEMPLATE-LINES...: signed by $tmp/ca
certificate()
{
    local directory=$1 name=$2
    shift 2
    printf '%s\n' "$@" >"$tmp/template"
    must certtool --generate-privkey --key-type=ecdsa --outfile "$directory/$name-key.pem"
    must certtool --generate-certificate --load-ca-certificate "$tmp/ca/ca-cert.pem" --load-ca-privkey "$tmp/ca/ca-key.pem" \
        --load-privkey "$directory/$name-key.pem" --template "$tmp/template" --outfile "$directory/$name-cert.pem"
    must cp "$tmp/ca/ca-cert.pem" "$directory/"
}

# authority DIRECTORY
authority()
{
    must mkdir -p "$1"
    printf '%s\n' 'cn = test' ca cert_signing_key >"$tmp/template"
    must certtool --generate-privkey --key-type=ecdsa --outfile "$1/ca-key.pem"
    must certtool --generate-self-signed --load-privkey "$1/ca-key.pem" --template "$tmp/template" \
        --outfile "$1/ca-cert.pem"
}

authority "$tmp/ca"
must mkdir "$tmp/server" "$tmp/client"
certificate "$tmp/server" server 'cn = localhost' 'dns_name = localhost' 'ip_address = 127.0.0.1' tls_www_server \
    encryption_key signing_key
certificate "$tmp/client" client 'cn = client' tls_www_client encryption_key signing_key
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
