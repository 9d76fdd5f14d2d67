#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-vdi.py DIRECTORY: writes crafted VDIs and prints what must become of each; see lib-hostile.sh.

The base of all is a disk of 16 KiB in blocks of 4 KiB: header, block map at 512, data at 1024. The third block is
free, the fourth is zeros."""
import os
import struct
import sys

directory = sys.argv[1]
BLOCK, MAP, DATA = 4096, 512, 1024
FREE, ZERO = 0xffffffff, 0xfffffffe
content = b"".join(bytes([i + 1]) * 512 for i in range(16))


class Image:
    def __init__(self, kind=1, parent=False, entries=(1, 0, FREE, ZERO)):
        self.header = bytearray(512)
        self.rest = bytearray(512)
        self.body = bytearray(content[BLOCK:] + content[:BLOCK])
        self.put(0, "20s", b"any text is legal\n").put(64, "IIIII", 0xbeda107f, 0x10001, 400, kind, 0)
        self.put(340, "IIIIIIIQIIII", MAP, DATA, 0, 0, 0, 512, 0, 4 * BLOCK, BLOCK, 0, 4, 2)
        self.put(392, "16s16s", bytes(range(16)), bytes(range(16, 32)))
        if parent:
            self.put(424, "16s16s", b"p" * 16, b"q" * 16)
        self.map(*entries)

    def put(self, offset, form, *values):
        struct.pack_into("<" + form, self.header, offset, *values)
        return self

    def map(self, *entries):
        struct.pack_into(f"<{len(entries)}I", self.rest, 0, *entries)
        return self

    def save(self, name):
        with open(os.path.join(directory, name + ".vdi"), "wb") as out:
            out.write(self.header + self.rest + self.body)


def refused(name, image, pattern):
    image.save(name)
    print(name, "open", pattern, sep="\t")


def reads(name, image, expected=content + bytes(2 * BLOCK)):
    with open(os.path.join(directory, name + ".raw"), "wb") as out:
        out.write(expected)
    image.save(name)
    print(name, "read", "", sep="\t")


reads("good", Image())
reads("no-geometry", Image().put(72, "I", 384))
reads("geometry-0", Image().put(348, "4I", 0, 0, 0, 0))
reads("odd-size", Image().put(368, "Q", 4 * BLOCK - 100))
reads("count-stale", Image().put(388, "I", 1))
reads("count-max", Image().put(388, "I", FREE))
reads("fixed", Image(2))
cut = Image(entries=(FREE, FREE, FREE, 2)).put(368, "Q", 3 * BLOCK + 1024)
cut.body += b"x" * 1024
reads("last-short", cut, bytes(3 * BLOCK) + b"x" * 1024)
extra = Image(entries=(FREE, 1)).put(380, "I", 1024).put(384, "I", 2).put(368, "Q", 2 * BLOCK)
extra.body = bytearray(1024 + BLOCK + 1024) + content[:BLOCK]
reads("extra", extra, bytes(BLOCK) + content[:BLOCK])
reads("spare-entries", Image().put(368, "Q", BLOCK).map(0, 0, 0, 0), content[BLOCK:])

for version in (0, 1, 0x10000, 0x10002, 0x20000, FREE):
    refused(f"version-{version:x}", Image().put(68, "I", version), "vdi: version [0-9]+.[0-9]+ is not 1.1")
for size in (0, 383, 513, 1 << 31, FREE):
    refused(f"header-size-{size}", Image().put(72, "I", size), f"vdi: header size {size} is not between")
for kind in (0, 3, 5, 0x101, FREE):
    refused(f"type-{kind}", Image(kind), f"vdi: image type {kind} is neither")
refused("child-without-parent", Image(4), "vdi: image type 4 contradicts the UUID of no parent")
refused("base-with-parent", Image(1, parent=True), "vdi: image type 1 contradicts the UUID of a parent")
refused("fixed-with-parent", Image(2, parent=True), "vdi: image type 2 contradicts")
refused("child", Image(4, parent=True), "does not name its parent; give it with --parent")
for size in (511, 4096, 1 << 31):
    refused(f"sector-size-{size}", Image().put(360, "I", size), f"vdi: sector size {size} is not 512")
for size in (0, 1, 3, 512, 2048, 6144, 1 << 27, 1 << 31, FREE):
    refused(f"block-size-{size}", Image().put(376, "I", size), f"vdi: block size {size} is not a power of two")
for size in (1, 511, 8192, 1 << 31, FREE):
    refused(f"block-extra-{size}", Image().put(380, "I", size), f"vdi: {size} extra bytes in a block are not")
for size in (0, 4 * BLOCK + 1, 1 << 40, 1 << 63, (1 << 64) - 512, (1 << 64) - 1):
    refused(f"disk-size-{size}", Image().put(368, "Q", size), f"vdi: disk size {size} does not fit")
for blocks in (0, 3, (64 << 20) + 1, 0x7fffffff, 0x40000000, 0x40000001, 1 << 31, FREE):
    refused(f"blocks-{blocks}", Image().put(384, "I", blocks), f"vdi: disk size 16384 does not fit into {blocks} blocks")
refused("blocks-long", Image().put(384, "I", 64 << 20), "vdi: the block map of 268435456 bytes at 0x200 is not between")
for at in (1, 513, 1 << 20, 1 << 31, 0xfffffe00):
    refused(f"map-at-{at}", Image().put(340, "I", at), "vdi: the block map of 16 bytes at 0x.* is not between|header size")
for at in (0, 256, 399):
    refused(f"map-at-{at}", Image().put(340, "I", at), "vdi: header size 400 is not between|the block map of 16 bytes")
for at in (0, 512, 1023, 1025, 520):
    refused(f"data-at-{at}", Image().put(344, "I", at), "vdi: the data at 0x.* does not begin behind the block map")
for at in (1 << 20, 0xfffffe00):
    refused(f"data-at-{at}", Image().put(344, "I", at), "vdi: block 0: number 1 lies behind the end of the file")
for number in (4, 5, 0xfffff, 1 << 20, 1 << 31, 0xfffffffd):
    refused(f"entry-{number}", Image(entries=(number, 0, FREE, ZERO)), f"vdi: block 0: number {number} lies behind the end")
refused("entries-equal", Image(entries=(1, 0, FREE, 1)), "vdi: block 3: number 1 is used twice")
short = Image(entries=(3, 1, 2, 0))
short.body = short.body[:4 * BLOCK - 512]
refused("middle-short", short, "vdi: block 0: number 3 lies behind the end|number . lies behind")
