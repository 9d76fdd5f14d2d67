# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# Sourced after lib.sh by tests that need an iSCSI target: a tgtd of their own, on loopback.

iqn=iqn.2026-11.example.blockmig:test

# free_port: sets REPLY to a port that nobody listens at now.
free_port()
{
    REPLY=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
}

# start_tgtd: (again) at $port, with nothing in it; sets tgtd to its pid and portal.
start_tgtd()
{
    need_tool tgtd tgtadm
    if [ -z "${port:-}" ]; then
        free_port
        port=$REPLY
    fi
    export TGT_IPC_SOCKET=$tmp/tgtd
    rm -f "$tmp"/tgtd.*
    tgtd -f -C 1 --iscsi "portal=127.0.0.1:$port" 3>&- </dev/null &
    tgtd=$!
    at_exit kill_tgtd "$tgtd" # it does not end by SIGTERM as long as it has targets
    portal=127.0.0.1:$port
    wait_for 20 tgt --op show --mode sys || must false "tgtd did not start"
}

tgt()
{
    tgtadm -C 1 --lld iscsi "$@"
}

# make_target: everybody may log in, unless "as" is given an account afterwards.
make_target()
{
    must tgt --op new --mode target --tid 1 -T "$iqn"
    must tgt --op bind --mode target --tid 1 -I ALL
}

# add_lun NUMBER FILE [tgtadm --params of the unit]: sets REPLY to its URI.
add_lun()
{
    local number=$1 file=$2
    shift 2
    must tgt --op new --mode logicalunit --tid 1 --lun "$number" --bstype rdwr -b "$file" "$@"
    REPLY=iscsi://$portal/$iqn/$number
}

# make_thin NUMBER: unmapped blocks read as zeros, and the unit says so.
make_thin()
{
    must tgt --op update --mode logicalunit --tid 1 --lun "$1" --params thin_provisioning=1
}

# kill_tgtd PID: as a crash would.
kill_tgtd()
{
    kill -KILL "$1" 2>/dev/null
    wait "$1" 2>/dev/null
    return 0
}

# start_stub FILE [OPTION or FAULT]...: tests/helpers/iscsi-target.py; sets stub to its pid and REPLY to a URI.
start_stub()
{
    free_port
    local at=$REPLY
    : >"$tmp/stub.out"
    start python3 "$srcdir/tests/helpers/iscsi-target.py" "$at" "$@" >"$tmp/stub.out"
    stub=$REPLY
    wait_for 20 grep -q ready "$tmp/stub.out" || must false "the stub did not start"
    REPLY=iscsi://127.0.0.1:$at/$iqn/1
}

# as_host HOST COMMAND...: as another host: another name, and so another key and another initiator.
as_host()
{
    local host=$1
    shift
    BLOCKMIG_ISCSI_INITIATOR=iqn.2026-11.example.blockmig:$host unshare -u sh -c 'hostname "$0"; exec "$@"' "$host" "$@"
}
