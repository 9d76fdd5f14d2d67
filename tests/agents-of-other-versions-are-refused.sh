#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# An agent of another version, or one that lacks what is needed, is refused before anything is changed; without what is not
# needed it is gone on.
. "${srcdir:-.}/tests/lib.sh"
. "$srcdir/tests/lib-libvirt.sh"
need_tool python3
need_free 2G
two_hosts

must qemu-img create -q -f qcow2 "$tmp/one/srv/store/disk.qcow2" 64M
start_domain one web --disk disk.qcow2:qcow2 --append 'rate=300 span=16M flush=32 log=1'
port=16600

# through (FROM TO)...: from now on the agent of the other host is reached at `there`, and says something else.
through()
{
    port=$((port + 1))
    start on two "$srcdir/tests/helpers/rewriting-proxy.py" 192.0.2.2 $port 16600 /srv/tls "$@"
    there=blockmig://192.0.2.2:$port
    wait_for 20 on one bash -c ": </dev/tcp/192.0.2.2/$port"
}

for version in 0 2; do
    through '"api":1' "\"api\":$version"
    migrate one web "$there"
    is "$status" 3 "migrate: an agent of version $version is refused" || diag "$err"
    like "$err" "speaks version $version of the protocol, and this blockmig version 1" "with both versions"
    run on one "$blockmig" copy -q /srv/web.xml "$there/store/web.raw"
    is "$status" 3 "copy: so it is" || diag "$err"
done
through /v1/machines /v1/machinez
migrate one web "$there"
is "$status" 3 "one that knows nothing of machines is refused" || diag "$err"
like "$err" "nothing of that kind is served" "in its words"
is "$(running_on web)$(domain_file one web)$(files "$tmp/one/srv/store")$(files "$tmp/two/srv/store")" \
    "one /srv/store/disk.qcow2disk.qcow2 " "nothing was changed"

through '"tpm":' '"tqm":'
domain_xml sealed --extra "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>" >"$tmp/one/srv/sealed.xml"
must on one virsh -q define /srv/sealed.xml
migrate one sealed "$there"
is "$status" 3 "one that takes no state of TPMs is refused by a machine that is off and has one" || diag "$err"
like "$err" "cold: the agent there takes no state of a TPM" "with the reason"

through 'Blockmig-Tunnel: framed' 'Blockmig-Tunnel: folded' /v1/framed-tunnels /v1/folded-tunnels '"ranges":true' '"rangez":true'
migrate one web "$there" --compress=zstd --delete-source
is "$status" 0 "one that cannot unpack memory gets it as it is" || diag "$err"
is "$(running_on web)$(defined_on web)" "two two " "the machine is there alone"
is "$(domain_verdict two web)" OK "and misses nothing"
done_testing
