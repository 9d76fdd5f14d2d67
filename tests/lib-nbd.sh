# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# NBD servers for tests, on sockets below $tmp.  Sourced after lib.sh.

need_tool qemu-nbd qemu-img nbdkit nbdinfo

# serve NAME COMMAND...: starts a server that listens on $tmp/NAME.sock; COMMAND gets "SOCKET" replaced by it.
# Sets REPLY to its pid and uri to where it is.
serve()
{
    local name=$1 socket=$tmp/$1.sock
    shift
    rm -f "$socket"
    start "${@//SOCKET/$socket}"
    wait_for 10 nbdinfo "nbd+unix:///?socket=$socket" || must false "no server: $*"
    uri=nbd+unix:///?socket=$socket
}

# serve_qemu NAME FORMAT FILE [options of qemu-nbd]
serve_qemu()
{
    local name=$1 format=$2 file=$3
    shift 3
    serve "$name" qemu-nbd -t -f "$format" -k SOCKET "$@" "$file"
}

# serve_kit NAME ARGUMENTS...: those of nbdkit.
serve_kit()
{
    local name=$1
    shift
    serve "$name" nbdkit -f -U SOCKET "$@"
}
