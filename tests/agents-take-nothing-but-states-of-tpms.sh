#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What an agent lets be written where libvirt keeps the state of TPMs: the files of machines, by their UUIDs, for those who may
# bring machines; and nothing else.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-tls.sh"
. "$srcdir/tests/lib-agent.sh"

# found: what was made, wherever it is.
found()
{
    find "$tmp/tpms" "$tmp/store" -mindepth 1
}

uuid=6a3f5e0a-5d2c-4b7e-9a3e-0c4a6e1f2b3d
other=0b0e3a52-7c0e-4b51-8f0c-7a4b1d5d9c11
local_agent
open_file .tpm $uuid/tpm2/tpm2-00.permall create
is "$http" 409 "who takes no machines takes no state of theirs"
must kill "$agent"
wait "$agent"

port=16612
authority "$tmp/ca"
server_certificate "$tmp/server"
client_certificate "$tmp/host" host
client_certificate "$tmp/guest" guest
more_agent="listen=127.0.0.1:$port
tls-directory=$tmp/server
allow=*"
more_datastores="[machines]
directory=$tmp/sockets
tpm-directory=$tmp/tpms
allow=host"
local_agent
is "$(stat -c %a "$tmp/tpms")" 711 "the directory is made as libvirt makes it"
ask GET /v1/machines
is "$(jq -r .tpm <<<"$out")" "$tmp/tpms" "and told to those who may bring machines"
ask GET /v1
is "$(jq -c .datastores <<<"$out")" '["store","frozen"]' "it is no datastore that is listed"

ask GET /v1/datastores/.tpm/files/$uuid/tpm2/tpm2-00.permall
is "$http $(jq -r .kind <<<"$out") $(found)" "200 none " "looking makes nothing"
ask DELETE /v1/datastores/.tpm/files/$uuid/tpm2/tpm2-00.permall
is "$http $(found)" "200 " "nor does removing"
for name in x $uuid $uuid/x $uuid/tpm2/x $uuid/tpm2/tpm2-00.permall/x "$uuid/tpm2/tpm2-00.permall.x" $uuid/tpm1.2/tpm2-00.permall \
    $uuid/../$other/tpm2/tpm2-00.permall ../store/x ../$uuid/tpm2/tpm2-00.permall "${uuid%?}/tpm2/tpm2-00.permall" \
    "${uuid}0/tpm2/tpm2-00.permall" /tpm2/tpm2-00.permall .blockmig-probe-x ''; do
    open_file .tpm "$name" create
    is "$http" 400 "'$name' is no name"
done
must mkdir "$tmp/tpms/$other"
must ln -s "$tmp/store" "$tmp/tpms/$other/tpm2"
open_file .tpm $other/tpm2/tpm2-00.permall create
check "a link leads nowhere" test "$http" -ge 400
must rm "$tmp/tpms/$other/tpm2"
must rmdir "$tmp/tpms/$other"
is "$(found)" "" "nothing was made by all that"

# as WHO COMMAND...
as()
{
    local who=$1
    shift
    BLOCKMIG_AGENT_TLS=$tmp/$who "$@"
}

random_file "$tmp/file" 1360 1
there=blockmig://localhost:$port/.tpm/$uuid
fails_with 3 "who may not bring machines writes none" as guest blockmig copy -q -O raw "$tmp/file" "$there/tpm2/tpm2-00.permall"
like "$err" "no datastore '.tpm' for 'guest'" "  and is told so"
is "$(found)" "" "  and made none"
open_file .tpm $uuid/tpm2/tpm2-00.permall create
is "$http $(stat -c %a "$tmp/tpms/$uuid/tpm2/tpm2-00.permall" "$tmp/tpms/$uuid/tpm2" | paste -sd' ')" "200 600 711" \
    "who may makes it, and nobody else reads it"
ask DELETE "/v1/handles/$handle"
fails_with 3 "who may not does not read it" as guest blockmig info "$there/tpm2/tpm2-00.permall"
must kill "$agent"
wait "$agent"

more_datastores="[machines]
directory=$tmp/sockets
tpm-directory=$tmp/nowhere/tpms"
local_agent
ask GET /v1/machines
is "$(jq -r .tpm <<<"$out")" null "where libvirt has no place for any, none are taken"
must kill "$agent"
wait "$agent"
sed -i 's|^tpm-directory=.*|tpm-directory=tpms|' "$tmp/agent.conf"
run "$builddir/tools/blockmigd" --check --config "$tmp/agent.conf"
is "$status" 2 "a path that is not absolute is none"
like "$err" "tpm-directory= want absolute paths" "  which is said"
done_testing
