#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An NBD server whose dirty bitmap "odd" is told in ways that are allowed, or not, but that qemu-nbd does not use.

nbd-bitmap-server.py SOCKET SIZE BLOCK ANSWER...

Each ANSWER is one reply to a block status request, the last one again and again: LENGTH:FLAGS,... as it is, "close" (the
connection), or "none" (a reply without block status). Clients are served one after the other, each from the first
ANSWER on. Follows the protocol's doc/proto.md: fixed newstyle, structured replies.
"""
import socket
import struct
import sys

OPTION_MAGIC, OPTION_REPLY_MAGIC = 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, REPLY_MAGIC, ACK = 0x25609513, 0x668E33EF, 1
OPT_ABORT, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT = 2, 7, 8, 10
CONTEXT = b"qemu:dirty-bitmap:odd"


def read(stream, layout):
    data = stream.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise EOFError
    return struct.unpack(layout, data)


def asked_contexts(data):
    """The names in a request to set contexts."""
    at = 4 + struct.unpack_from(">I", data)[0]
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    for _ in range(count):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4:at + 4 + length]
        at += 4 + length


def negotiate(stream, size, block):
    """True if the client wants to go on."""
    def reply(option, kind, data=b""):
        stream.write(struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    stream.write(b"NBDMAGIC" + struct.pack(">QH", OPTION_MAGIC, 3))
    stream.flush()
    read(stream, ">I")
    while True:
        _, option, length = read(stream, ">QII")
        data = stream.read(length)
        if option == OPT_SET_CONTEXT and CONTEXT in asked_contexts(data):
            reply(option, 4, struct.pack(">I", 1) + CONTEXT)
        if option == OPT_GO:
            reply(option, 3, struct.pack(">HQH", 0, size, 3))  # has flags, is read-only
            reply(option, 3, struct.pack(">HIII", 3, block, block, 1 << 20))
        known = option in (OPT_ABORT, OPT_GO, OPT_STRUCTURED, OPT_SET_CONTEXT)
        reply(option, ACK if known else 0x80000001)
        stream.flush()
        if option in (OPT_ABORT, OPT_GO):
            return option == OPT_GO


def serve(stream, answers):
    count = 0
    while True:
        _, _, kind, cookie, _, _ = read(stream, ">IHHQQI")
        if kind == 2:
            return
        answer = answers[min(count, len(answers) - 1)]
        count += 1
        if answer == "close":
            return
        data = b"" if answer == "none" else struct.pack(">I", 1)
        for extent in [] if answer == "none" else answer.split(","):
            data += struct.pack(">II", *map(int, extent.split(":")))
        stream.write(struct.pack(">IHHQI", REPLY_MAGIC, 1, 5 if data else 0, cookie, len(data)) + data)
        stream.flush()


def main(path, size, block, *answers):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(8)
    while True:
        client, _ = listener.accept()
        with client, client.makefile("rwb") as stream:
            try:
                if negotiate(stream, int(size), int(block)):
                    serve(stream, answers)
            except (EOFError, ConnectionError):
                pass


main(*sys.argv[1:])
