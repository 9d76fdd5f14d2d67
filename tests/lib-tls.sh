# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Certificates for tests.  Sourced after lib.sh.

need_tool certtool

# authority DIRECTORY: one that signs others.
authority()
{
    must mkdir -p "$1"
    printf '%s\n' 'cn = test' ca cert_signing_key crl_signing_key >"$tmp/template"
    must certtool --generate-privkey --key-type=ecdsa --outfile "$1/ca-key.pem"
    must certtool --generate-self-signed --load-privkey "$1/ca-key.pem" --template "$tmp/template" \
        --outfile "$1/ca-cert.pem"
}

# certificate DIRECTORY NAME TEMPLATE-LINES...: signed by $ca, or by $tmp/ca
certificate()
{
    local directory=$1 name=$2 by=${ca:-$tmp/ca}
    shift 2
    must mkdir -p "$directory"
    printf '%s\n' "$@" >"$tmp/template"
    must certtool --generate-privkey --key-type=ecdsa --outfile "$directory/$name-key.pem"
    must certtool --generate-certificate --load-ca-certificate "$by/ca-cert.pem" --load-ca-privkey "$by/ca-key.pem" \
        --load-privkey "$directory/$name-key.pem" --template "$tmp/template" --outfile "$directory/$name-cert.pem"
    must cp "$tmp/ca/ca-cert.pem" "$directory/"
}

# server_certificate DIRECTORY, client_certificate DIRECTORY NAME
server_certificate()
{
    certificate "$1" server 'cn = localhost' 'dns_name = localhost' 'ip_address = 127.0.0.1' ${2:+"ip_address = $2"} \
        tls_www_server encryption_key signing_key
}

client_certificate()
{
    certificate "$1" client "cn = $2" tls_www_client encryption_key signing_key
}
