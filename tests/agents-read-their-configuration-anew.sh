#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# On SIGHUP an agent takes its new configuration and certificates, if they are in order, and keeps its connections.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"
need_tool ss

port=16615
authority "$tmp/ca"
server_certificate "$tmp/server"
server_certificate "$tmp/newer"
client_certificate "$tmp/admin" admin
client_certificate "$tmp/guest" guest
must mkdir -p "$tmp/store/below" "$tmp/frozen" "$tmp/elsewhere"
kept="$srcdir/tests/helpers/kept-connection.py"

# configure ALLOW [LINES...]: writes the configuration.
configure()
{
    local allow=$1
    shift
    printf '%s\n' '[agent]' "listen=127.0.0.1:$port" "tls-directory=$tmp/server" "allow=$allow" '[datastore store]' \
        "directory=$tmp/store" '[datastore frozen]' "directory=$tmp/frozen" read-only=true "$@" >"$tmp/agent.conf.new"
    mv "$tmp/agent.conf.new" "$tmp/agent.conf"
}

# as WHO PATH: sets http and out.
as()
{
    run curl -s --max-time 20 --cacert "$tmp/ca/ca-cert.pem" --cert "$tmp/$1/client-cert.pem" \
        --key "$tmp/$1/client-key.pem" -w '\n%{http_code}' "https://localhost:$port$2"
    http=${out##*$'\n'}
}

cat >"$tmp/read-anew" <<'END'
#!/bin/bash
# read-anew PID LOG [COMMAND...]: tells the agent, after the command has changed something, and waits until it has.
pid=$1 log=$2
shift 2
"$@"
before=$(grep -c . "$log")
kill -HUP "$pid"
for i in {1..200}; do
    [ "$(grep -c . "$log")" -eq "$before" ] || exit 0
    sleep 0.05
done
exit 1
END
chmod +x "$tmp/read-anew"
read_anew()
{
    must "$tmp/read-anew" "$agent" "$tmp/log"
    said=$(tail -1 "$tmp/log")
}

configure admin
start_agent "$tmp/agent.conf" 2>"$tmp/log"
as guest /v1
is "$http" 403 "who is not allowed is not let in"
serial=$("$kept" $port "$tmp/admin" | cut -d' ' -f3)
random_file "$tmp/disk.raw" 40M 1
BLOCKMIG_AGENT_TLS=$tmp/admin start "$builddir/tools/blockmig" copy -q --bandwidth=10MiB/s "$tmp/disk.raw" \
    "blockmig://localhost:$port/store/disk.raw"
copy=$REPLY
wait_for 20 test -s "$tmp/store/disk.raw.blockmig-part"

# ---- what is taken ----------------------------------------------------------------------------------

configure 'admin;guest' '[datastore below]' "directory=$tmp/store/below"
read_anew
like "$said" "read anew" "a new configuration is read"
as guest /v1
is "$http" 200 "who is allowed by it is let in"
like "$out" '"below"' "to a datastore that is new, in a directory that was served"
must cp "$tmp/newer/server-cert.pem" "$tmp/newer/server-key.pem" "$tmp/server/"
got=$("$kept" $port "$tmp/admin" "$tmp/read-anew" "$agent" "$tmp/log")
like "$got" "^200 200 $serial" "a connection stays"
unlike "$("$kept" $port "$tmp/admin")" " $serial" "a new one is shown the new certificate"

# ---- what is not ------------------------------------------------------------------------------------

# descriptors: those that listening takes, how many.
descriptors()
{
    find "/proc/$agent/fd" -lname 'anon_inode:*' | wc -l
    ss -Htlnp "sport = :$port" | grep -o "pid=$agent," | wc -l
}
before=$(descriptors)

# refused WHAT WHY: it is, and what was before holds.
refused()
{
    read_anew
    like "$said" "old configuration stays: .*$2" "$1 is refused"
    as guest /v1
    is "$http" 200 "and the old stays"
}

configure admin 'alow=x'
refused "a wrong configuration" "alow"
configure admin '[datastore elsewhere]' "directory=$tmp/elsewhere"
refused "a directory that was not served" "elsewhere was not served like that at the start: it takes a restart"
configure admin '[datastore thawed]' "directory=$tmp/frozen"
refused "writing where it was only read" "frozen was not served like that at the start: it takes a restart"
configure admin
sed -i "s/:$port/:1/" "$tmp/agent.conf"
refused "another address" "restart"
configure admin
must cp "$tmp/server/server-key.pem" "$tmp/key"
echo nonsense >"$tmp/server/server-key.pem"
refused "a key that is none" "certificate and key"
must cp "$tmp/admin/client-key.pem" "$tmp/server/server-key.pem"
refused "the key of another certificate" "certificate and key"
rm "$tmp/server/server-key.pem"
refused "a key that is not there" "server-key.pem"
must mv "$tmp/key" "$tmp/server/server-key.pem"
rm "$tmp/agent.conf"
refused "no configuration" "agent.conf"
is "$(descriptors)" "$before" "nothing of them is left"

# ---- who is not let in any more ---------------------------------------------------------------------

configure 'admin;guest'
got=$("$kept" $port "$tmp/guest" "$tmp/read-anew" "$agent" "$tmp/log" sed -i s/allow=.*/allow=admin/ "$tmp/agent.conf")
like "$got" "^200 403 " "who is not allowed any more is told so on his old connection"
configure 'admin;guest'
read_anew
printf '%s\n' 'crl_next_update = "2099-01-01 00:00:00 UTC"' crl_number=1 >"$tmp/template"
must certtool --generate-crl --load-ca-privkey "$tmp/ca/ca-key.pem" --load-ca-certificate "$tmp/ca/ca-cert.pem" \
    --load-certificate "$tmp/guest/client-cert.pem" --template "$tmp/template" --outfile "$tmp/crl"
got=$("$kept" $port "$tmp/guest" "$tmp/read-anew" "$agent" "$tmp/log" cp "$tmp/crl" "$tmp/server/ca-crl.pem")
like "$got" "^200 403 " "and so is who shows a certificate that was revoked"
as guest /v1
like "$out" "revoked" "who is not let in again"
as admin /v1
is "$http" 200 "others are"

wait "$copy"
is $? 0 "a copy has gone on under all this"
check "and is right" cmp "$tmp/disk.raw" "$tmp/store/disk.raw"
must kill "$agent"
wait "$agent"
is $? 0 "and the agent ends"
done_testing
