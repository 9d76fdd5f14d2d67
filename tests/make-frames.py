#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-frames.py (data OFFSET FILE | zstd OFFSET FILE | zero OFFSET LENGTH | same OFFSET HANDLE:OFFSET:FILE |
                broken-WHAT OFFSET FILE)...
make-frames.py digest FILE CHUNK
make-frames.py unpack <STREAM

Frames as blockmig/storage/frame.h describes them, made and read without its code: the digest by xxhsum, zstd by
zstd.
"""
import hashlib
import struct
import subprocess
import sys


def digest(content):
    """XXH3-128, canonical."""
    text = subprocess.run(["xxhsum", "-H2"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return bytes.fromhex(text.split()[0].decode())


def zstd(content, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=content, stdout=subprocess.PIPE, check=True).stdout


def header(kind, offset, length, payload, summary=bytes(16), magic=b"BMF1"):
    return magic + struct.pack("<B3xQQI4x", kind, offset, length, payload) + summary


def broken(what, offset, content):
    """A frame of data with one thing wrong."""
    good = {"kind": 1, "offset": offset, "length": len(content), "payload": len(content), "summary": digest(content)}
    if what == "digest":
        good["summary"] = bytes(16)
    elif what == "magic":
        good["magic"] = b"BMF2"
    elif what == "kind":
        good["kind"] = 9
    elif what == "length":
        good["length"] += 1
    elif what == "offset":
        good["offset"] = (1 << 63) - 5
    elif what == "long":
        good["length"] = good["payload"] = 1 << 30
    frame = header(**good) + content
    return frame[:-1] if what == "cut" else frame


def make(arguments):
    for kind, offset, what in zip(arguments[::3], arguments[1::3], arguments[2::3]):
        if kind == "zero":
            yield header(0, int(offset), int(what), 0)
            continue
        with open(what.split(":")[-1], "rb") as file:
            content = file.read()
        if kind == "same":
            handle, place, _ = what.split(":")
            yield header(3, int(offset), len(content), 56) + bytes.fromhex(handle) + struct.pack("<Q", int(place))
            yield hashlib.sha256(content).digest()
        elif kind.startswith("broken-"):
            yield broken(kind[7:], int(offset), content)
        else:
            payload = zstd(content) + b"" if kind == "zstd" else content
            if kind == "zstd" and len(payload) >= len(content):
                kind, payload = "data", content
            yield header({"data": 1, "zstd": 2}[kind], int(offset), len(content), len(payload), digest(content)) + payload


def unpack(stream):
    while stream:
        magic, kind, _, length, payload = struct.unpack("<4sB3xQQI4x", stream[:32])
        summary, content, stream = stream[32:48], stream[48 : 48 + payload], stream[48 + payload :]
        assert magic == b"BMF1", magic
        if kind == 0:
            content = bytes(length)
        elif kind == 2:
            content = zstd(content, "-d")
        assert len(content) == length and (kind == 0 or digest(content) == summary)
        yield content


def main():
    if sys.argv[1] == "digest":
        with open(sys.argv[2], "rb") as file:
            while content := file.read(int(sys.argv[3])):
                print(digest(content).hex())
    elif sys.argv[1] == "unpack":
        for content in unpack(sys.stdin.buffer.read()):
            sys.stdout.buffer.write(content)
    else:
        for frame in make(sys.argv[1:]):
            sys.stdout.buffer.write(frame)


main()
