#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Over TLS an agent and its client show each other certificates; who is not let in gets nothing.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"

port=16611
authority "$tmp/ca"
authority "$tmp/others"
server_certificate "$tmp/server"
client_certificate "$tmp/admin" admin@one
client_certificate "$tmp/guest" guest
client_certificate "$tmp/stranger" stranger
client_certificate "$tmp/lost" admin@lost
ca=$tmp/others client_certificate "$tmp/forged" admin@one
certificate "$tmp/misused" client 'cn = admin@one' tls_www_server encryption_key signing_key
printf '%s\n' 'crl_next_update = "2099-01-01 00:00:00 UTC"' crl_number=1 >"$tmp/template"
must certtool --generate-crl --load-ca-privkey "$tmp/ca/ca-key.pem" --load-ca-certificate "$tmp/ca/ca-cert.pem" \
    --load-certificate "$tmp/lost/client-cert.pem" --template "$tmp/template" --outfile "$tmp/server/ca-crl.pem"
must mkdir "$tmp/store" "$tmp/private"
cat >"$tmp/agent.conf" <<END
[agent]
listen=127.0.0.1:$port
tls-directory=$tmp/server
allow=admin@*;guest
[datastore store]
directory=$tmp/store
[datastore private]
directory=$tmp/private
allow=admin@*
END
start_agent "$tmp/agent.conf"
random_file "$tmp/disk.raw" 5M 1
export BLOCKMIG_AGENT_TIMEOUT=2

# as WHO COMMAND...
as()
{
    local who=$1
    shift
    BLOCKMIG_AGENT_TLS=$tmp/$who "$@"
}

there=blockmig://localhost:$port
run_ok "who is allowed copies" as admin blockmig copy -q "$tmp/disk.raw" "$there/private/disk.raw"
check "and it arrives" cmp "$tmp/disk.raw" "$tmp/private/disk.raw"
run_ok "by its address, too" as guest blockmig copy -q "$tmp/disk.raw" "blockmig://127.0.0.1:$port/store/"
fails_with 3 "a datastore is not for everybody" as guest blockmig copy -q "$tmp/disk.raw" "$there/private/other.raw"
like "$err" "no datastore 'private' for 'guest'" "which is said"
fails_with 3 "a name that is not allowed" as stranger blockmig info "$there/store/disk.raw"
like "$err" "'stranger' may not" "is told so"
fails_with 3 "a certificate that was revoked" as lost blockmig info "$there/store/disk.raw"
like "$err" "revoked" "is not taken"
fails_with 3 "nor one of another authority, whatever it says" as forged blockmig info "$there/store/disk.raw"
fails_with 3 "nor one that is not for clients" as misused blockmig info "$there/store/disk.raw"
fails_with 3 "no certificate at all" as ca blockmig info "$there/store/disk.raw"
run curl -s --cacert "$tmp/ca/ca-cert.pem" "https://localhost:$port/v1" -w '%{http_code}'
like "$out" "shows no certificate.*403" "is told by the agent"
run curl -sv --cacert "$tmp/ca/ca-cert.pem" "https://localhost:$port/v1"
like "$err" "SSL connection using [^/]*/ [^ ]*AES.128.GCM" "the agent's order of ciphers counts, not the client's"
must cp -r "$tmp/admin" "$tmp/mixed"
must cp "$tmp/guest/client-key.pem" "$tmp/mixed/"
fails_with 3 "a certificate with another one's key" as mixed blockmig info "$there/store/disk.raw"
like "$err" "mixed/client-cert.pem with the key .*mixed/client-key.pem" "is told without asking"
must truncate -s 100 "$tmp/mixed/client-key.pem"
fails_with 3 "and one with half a key" as mixed blockmig info "$there/store/disk.raw"
must cp -r "$tmp/admin" "$tmp/misled"
must cp "$tmp/others/ca-cert.pem" "$tmp/misled/"
fails_with 3 "an agent of another authority" as misled blockmig info "$there/store/disk.raw"
like "$err" "certificate" "is not trusted"
run curl -s --http1.1 --tls-max 1.1 --cacert "$tmp/ca/ca-cert.pem" "https://localhost:$port/v1"
check "old versions of TLS are not spoken" test "$status" -ne 0
run curl -s "http://localhost:$port/v1" --max-time 5
check "nor plain HTTP" test "$status" -ne 0

# ---- clocks that are apart ----------------------------------------------------------------------------

future=('activation_date = "2099-01-01 00:00:00 UTC"' 'expiration_date = "2099-12-31 00:00:00 UTC"')
certificate "$tmp/early" client 'cn = admin@one' tls_www_client encryption_key signing_key "${future[@]}"
fails_with 3 "a certificate that is not valid yet" as early blockmig info "$there/store/disk.raw"
like "$err" "not yet valid" "is told"
certificate "$tmp/later" server 'cn = localhost' 'dns_name = localhost' tls_www_server encryption_key signing_key "${future[@]}"
printf '%s\n' '[agent]' listen=127.0.0.1:16612 "tls-directory=$tmp/later" 'allow=*' >"$tmp/later.conf"
start_agent "$tmp/later.conf"
fails_with 3 "an agent whose own is not" as admin blockmig info "blockmig://localhost:16612/store/disk.raw"
like "$err" "have to be valid now, and this host's clock says 2" "is told with the time"

fails_with 8 "an agent that is not there" as admin blockmig info "blockmig://localhost:1/store/disk.raw"
fails_with 2 "a name without a datastore" as admin blockmig info "blockmig://localhost:$port/"
is "$(grep -rlE 'PRIVATE KEY' "$BLOCKMIG_STATE_DIR")" "" "no key is in the journal"
done_testing
