#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-foreign-image.py bochs|cloop|dmg RAW IMAGE

Makes images of formats that QEMU reads and nothing in Debian writes, from a raw disk of whole sectors.
"""
import base64
import struct
import sys
import zlib

SECTOR = 512


def pieces(disk, length):
    return [disk[at : at + length] for at in range(0, len(disk), length)]


def bochs(disk):
    """A growing disk: a catalog of extents, each behind a bitmap of the sectors that it has."""
    extent, bitmap = 1 << 20, (1 << 20) // SECTOR // 8
    catalog, data, used = [], b"", 0
    for piece in pieces(disk, extent):
        if not any(piece):
            catalog.append(0xFFFFFFFF)
            continue
        catalog.append(used)
        used += 1
        bits = bytearray(bitmap)
        for number, sector in enumerate(pieces(piece, SECTOR)):
            if any(sector):
                bits[number // 8] |= 1 << number % 8
        data += bytes(bits).ljust(SECTOR, b"\0") + piece.ljust(extent, b"\0")
    header = struct.pack(
        "<32s16s16sIIIIIIQ", b"Bochs Virtual HD Image", b"Redolog", b"Growing", 0x00020000, SECTOR,
        len(catalog), bitmap, extent, 0, len(disk))
    return header.ljust(SECTOR, b"\0") + struct.pack(f"<{len(catalog)}I", *catalog) + data


def cloop(disk):
    """Compressed blocks of one size, found through a table of offsets."""
    block = 64 << 10
    packed = [zlib.compress(piece.ljust(block, b"\0")) for piece in pieces(disk, block)]
    at = 136 + 8 * (len(packed) + 1)
    offsets = [at]
    for piece in packed:
        at += len(piece)
        offsets.append(at)
    head = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
    return (head.ljust(128, b"\0") + struct.pack(">II", block, len(packed))
            + struct.pack(f">{len(offsets)}Q", *offsets) + b"".join(packed))


def dmg_chunk(kind, sector, count, offset, length):
    return struct.pack(">IIQQQQ", kind, 0, sector, count, offset, length)


def dmg(disk):
    """Chunks of three kinds, zeros, raw and compressed, listed in a property list, which a trailer finds."""
    chunks, data = b"", b""
    for number, piece in enumerate(pieces(disk, 256 << 10)):
        sector, count = number * ((256 << 10) // SECTOR), len(piece) // SECTOR
        kind, packed = (2, b"") if not any(piece) else (1, piece) if number % 3 == 0 else (0x80000005, zlib.compress(piece))
        chunks += dmg_chunk(kind, sector, count, len(data), len(packed))
        data += packed
    sectors = len(disk) // SECTOR
    chunks += dmg_chunk(0xFFFFFFFF, sectors, 0, len(data), 0)
    mish = struct.pack(">4sIQQQ", b"mish", 1, 0, sectors, 0).ljust(200, b"\0") + struct.pack(">I", len(chunks) // 40) + chunks
    plist = (b"<?xml version=\"1.0\"?><plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>"
             b"<key>Data</key><data>" + base64.b64encode(mish) + b"</data></dict></array></dict></dict></plist>")
    koly = bytearray(SECTOR)
    struct.pack_into(">4sII", koly, 0, b"koly", 4, SECTOR)
    struct.pack_into(">QQ", koly, 0x18, 0, len(data))
    struct.pack_into(">QQ", koly, 0xD8, len(data), len(plist))
    struct.pack_into(">Q", koly, 0x1EC, sectors)
    return data + plist + bytes(koly)


def main():
    kind, source, target = sys.argv[1:]
    with open(source, "rb") as file:
        disk = file.read()
    with open(target, "wb") as file:
        file.write({"bochs": bochs, "cloop": cloop, "dmg": dmg}[kind](disk))


main()
