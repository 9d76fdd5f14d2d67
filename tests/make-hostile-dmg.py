#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-dmg.py DIRECTORY: writes crafted DMGs and prints what must become of each; see lib-hostile.sh.

The base of all is a disk of 128 KiB in two tables of four chunks of 16 KiB: compressed, zeros, raw, ignored (which are
zeros, too)."""
import base64
import bz2
import os
import struct
import sys
import zlib

directory = sys.argv[1]
SECTOR, PIECE = 512, 32  # sectors
ZERO, RAW, IGNORE, ADC, ZLIB, BZIP2, LZFSE = 0, 1, 2, 0x80000004, 0x80000005, 0x80000006, 0x80000007
COMMENT, END = 0x7ffffffe, 0xffffffff
ALL = (1 << 64) - 1
KINDS = (ZLIB, ZERO, RAW, IGNORE) * 2
SECTORS = PIECE * len(KINDS)
TRAILER_DATA, TRAILER_FORK, TRAILER_LIST, TRAILER_SECTORS = 0x18, 0x28, 0xd8, 0x1ec
FIRST, COUNT, OFFSET, LENGTH = 1, 2, 3, 4  # of a chunk
content = b"".join((b"%04d" % n * 4096 if kind not in (ZERO, IGNORE) else bytes(PIECE * SECTOR)) for n, kind in enumerate(KINDS))


def pack(kind, data):
    return {ZERO: lambda d: b"", IGNORE: lambda d: b"", ZLIB: zlib.compress, BZIP2: bz2.compress}.get(kind, lambda d: d)(data)


class Image:
    def __init__(self, **kinds):
        self.data, self.tables = bytearray(), []
        for n, kind in enumerate(KINDS):
            if n % 4 == 0:
                base = len(self.data)
                self.tables.append([n * PIECE, base, [[COMMENT, 0, 0, 0, 0]]])
            kind = kinds.get(f"chunk{n}", kind)
            packed = pack(kind, content[n * PIECE * SECTOR:(n + 1) * PIECE * SECTOR])
            self.tables[-1][2].append([kind, n % 4 * PIECE, PIECE, len(self.data) - base, len(packed)])
            self.data += packed
        self.trailer = bytearray(struct.pack(">4sII", b"koly", 4, SECTOR).ljust(SECTOR, b"\0"))
        self.fork, self.before, self.cut = False, b"", None
        self.edits = []

    def chunk(self, n, field, value):
        self.tables[n // 4][2][n % 4 + 1][field] = value
        return self

    def drop(self, n):
        del self.tables[n // 4][2][n % 4 + 1]
        return self

    def put(self, offset, *values):
        """In the trailer, after all else."""
        self.edits.append((offset, values))
        return self

    def made_with(self, **fields):
        for name, value in fields.items():
            setattr(self, name, value)
        return self

    def bytes(self):
        tables = []
        for first, base, chunks in self.tables:
            chunks = chunks + [[END, 4 * PIECE, 0, 0, 0]]
            tables.append(struct.pack(">4sIQQQ", b"mish", 1, first, 4 * PIECE, base).ljust(200, b"\0")
                          + struct.pack(">I", len(chunks)) + b"".join(struct.pack(">IIQQQQ", c[0], 0, *c[1:]) for c in chunks))
        if self.fork:
            items = b"".join(struct.pack(">I", len(t)) + t for t in tables)
            extra = struct.pack(">III", 256, 256 + len(items), len(items)).ljust(256, b"\0") + items
            where = TRAILER_FORK
        else:
            lines = (b"\n\t".join(t[i:i + 52] for i in range(0, len(t), 52)) for t in map(base64.b64encode, tables))
            extra = b"<plist><array>" + b"".join(b"<dict><data>\n\t" + x + b"\n</data></dict>" for x in lines) + b"</array></plist>"
            where = TRAILER_LIST
        extra += self.before
        for at, values in [(TRAILER_DATA, (0, len(self.data))), (where, (len(self.data), len(extra))),
                           (TRAILER_SECTORS, (SECTORS,))] + self.edits:
            struct.pack_into(f">{len(values)}Q", self.trailer, at, *values)
        return (bytes(self.data) + extra + bytes(self.trailer))[:self.cut]


def case(name, image, outcome, pattern=""):
    with open(os.path.join(directory, name + ".dmg"), "wb") as out:
        out.write(image.bytes())
    print(name, outcome, pattern, sep="\t")


def reads(name, image):
    case(name, image, "read")


def refused(name, image, pattern):
    case(name, image, "open", "dmg: " + pattern)


def used(name, image):
    case(name, image, "use", "reading [0-9]+ bytes at offset [0-9]+: Input/output error")


with open(os.path.join(directory, "disk.raw"), "wb") as out:
    out.write(content)
reads("good", Image())
reads("fork", Image().made_with(fork=True))
reads("odd-length", Image().made_with(before=b" " * 77))
reads("longer-chunk", Image().chunk(0, LENGTH, 4096).chunk(2, LENGTH, PIECE * SECTOR + 512))

# What QEMU would read as what it had in memory before, or as zeros.
for length in (0, 1, PIECE * SECTOR // 2, PIECE * SECTOR - 1):
    refused(f"raw-length-{length}", Image().chunk(2, LENGTH, length), f"chunk 3 of table 0 has {length} bytes for 32 sectors")
for kind, n in (("zlib", 4), ("raw", 6)):
    for offset in (1 << 20, 1 << 40, 1 << 63, ALL):
        refused(f"{kind}-offset-{offset}", Image().chunk(n, OFFSET, offset), f"chunk {n % 4 + 1} of table 1: [0-9]+ bytes at offset "
                "[0-9]+ are not in the file")
    for length in (1 << 20, 1 << 31, 1 << 63, ALL):
        refused(f"{kind}-length-{length}", Image().chunk(n, LENGTH, length), f"chunk {n % 4 + 1} of table 1: {length} bytes")
    for count in (0, PIECE - 1, PIECE + 1, 1 << 40, 1 << 63, ALL):
        refused(f"{kind}-sectors-{count}", Image().chunk(n, COUNT, count), "chunk [0-9] of table 1 (has|.*are not in the file)")
    refused(f"{kind}-missing", Image().drop(n), "chunk [0-9] of table 1 has 32 sectors from [0-9]+ on")
for first in (0, PIECE // 2, PIECE * 3, 1 << 40, ALL):
    refused(f"first-{first}", Image().chunk(1, FIRST, first), f"chunk 2 of table 0 has 32 sectors from {first} on, the one before it ends at 32")
refused("last-missing", Image().drop(7), "the disk has 256 sectors, its chunks have 224")
refused("table-missing", Image().made_with(tables=Image().tables[:1]), "the disk has 256 sectors, its chunks have 128")
refused("tables-swapped", Image().made_with(tables=Image().tables[::-1]), "chunk 1 of table 0 has 32 sectors from 128 on")
refused("table-twice", Image().made_with(tables=Image().tables[:1] * 2), "chunk 1 of table 1 has 32 sectors from 0 on")
refused("no-tables", Image().made_with(tables=[]), "the disk has 256 sectors, its chunks have 0")
for count in (0, SECTORS - 1, SECTORS + 1, 1 << 37, 1 << 62, ALL):
    refused(f"disk-{count}", Image().put(TRAILER_SECTORS, count), f"the disk has {count} sectors, its chunks have 256")
refused("endless", Image().chunk(7, COUNT, 1 << 50).put(TRAILER_SECTORS, (1 << 50) + SECTORS - PIECE), "chunk 4 of table 1 has 1125899906842624 sectors")
for kind, name in ((ADC, "ADC"), (BZIP2, "bzip2"), (LZFSE, "LZFSE"), (0x80000008, "LZMA")):
    refused(name, Image(chunk0=kind), f"chunk 1 of table 0 is of type 0x{kind:08x} .{name}., which is not read")
refused("kind-3", Image(chunk0=3), "chunk 1 of table 0 is of type 0x00000003, which is not read")

# What is wrong with a compressed chunk is found by unpacking it.
used("packed-length-0", Image().chunk(0, LENGTH, 0))
used("packed-cut", Image().chunk(4, LENGTH, 20))
rubbish = Image()
rubbish.data[:8] = b"\xff" * 8
used("packed-rubbish", rubbish)
bomb = Image()
bomb.chunk(4, OFFSET, len(bomb.data)).chunk(4, LENGTH, 1030)
bomb.tables[1][1] = 0
for n in (6, 7, 5):
    bomb.chunk(n, OFFSET, bomb.tables[1][2][n % 4 + 1][OFFSET] + Image().tables[1][1])
bomb.data += zlib.compress(bytes(1 << 20), 9)
used("packed-bomb", bomb)

# ---- trailer

refused("no-trailer", Image().put(0, 0), 'the file does not end with a trailer, "koly"')
refused("cut-1", Image().made_with(cut=-1), "the file does not end with a trailer")
refused("cut-sector", Image().made_with(cut=-512), "the file does not end with a trailer")
refused("cut-half", Image().made_with(cut=20000), "the file does not end with a trailer")
refused("empty", Image().made_with(cut=0), "the file does not end with a trailer")
refused("other-trailer", Image().made_with(before=b"koly" + bytes(100)), "the file does not end with a trailer")
front = Image()
front.data = front.data[512:]
refused("front-lost", front.put(TRAILER_LIST, len(Image().data)), "the property list of [0-9]+ bytes at offset [0-9]+ does not lie")
for label, where, fork in (("property list", TRAILER_LIST, False), ("resource fork", TRAILER_FORK, True)):
    for at in (1 << 40, 1 << 63, ALL):
        refused(f"{label[0]}-at-{at}", Image().made_with(fork=fork).put(where, at), f"the {label} of [0-9]+ bytes at offset {at} does not lie")
    for length in (1 << 24, 1 << 63, ALL):
        refused(f"{label[0]}-length-{length}", Image().made_with(fork=fork).put(where + 8, length), f"the {label} of {length} bytes")
refused("fork-header", Image().made_with(fork=True).put(TRAILER_FORK, 0, 600), "the resource fork of 600 bytes contradicts its header")
refused("fork-item", Image().made_with(fork=True, tables=[]).made_with(before=b"").put(TRAILER_FORK + 8, 8), "the resource fork of 8 bytes")
for at in (1 << 20, ALL):
    refused(f"data-at-{at}", Image().put(TRAILER_DATA, at), f"the data fork at offset {at} is not in the file")
half = Image()
refused("list-half", half.put(TRAILER_LIST, len(half.data), 100), "the property list ends within <data>")
