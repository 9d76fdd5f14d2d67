#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-qcow.py DIRECTORY: writes crafted QCOW images of version 1 and prints what must become of each; see
lib-hostile.sh.

The base of all is a disk of 256 KiB in clusters of 512 bytes, with L2 tables of 64 entries: 8 of them. The first has
clusters 0, 1 and 5 (compressed), the last one the last cluster."""
import os
import struct
import sys
import zlib

directory = sys.argv[1]
CLUSTER, SIZE, L1 = 512, 256 << 10, 512
FIRST, LAST, DATA = 1024, 1536, 2048
content = bytearray(SIZE)
for n in (0, 1, 5, SIZE // CLUSTER - 1):
    content[n * CLUSTER:(n + 1) * CLUSTER] = bytes([n % 250 + 1]) * CLUSTER
deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
packed = deflate.compress(bytes(content[5 * CLUSTER:6 * CLUSTER])) + deflate.flush()
SHIFT = 63 - 9


def compressed(offset, length):
    return 1 << 63 | length << SHIFT | offset


class Image:
    def __init__(self, magic=0x514649fb, version=1, name_at=0, name_size=0, size=SIZE, cluster_bits=9, l2_bits=6, crypt=0,
                 l1_at=L1, backing=b""):
        self.image = bytearray(DATA)
        struct.pack_into(">IIQIIQBBHIQ", self.image, 0, magic, version, name_at, name_size, 0, size, cluster_bits, l2_bits, 0,
                         crypt, l1_at)
        self.image[256:256 + len(backing)] = backing
        self.put(L1, FIRST).put(L1 + 7 * 8, LAST)
        self.entry(0, DATA).entry(1, DATA + 512).entry(5, compressed(DATA + 1536 + 3, len(packed)))
        self.put(LAST + 63 * 8, DATA + 1024)
        for n in (0, 1, SIZE // CLUSTER - 1):
            self.image += content[n * CLUSTER:(n + 1) * CLUSTER]
        self.image += b"xxx" + packed

    def put(self, offset, value):
        struct.pack_into(">Q", self.image, offset, value)
        return self

    def entry(self, n, value):
        return self.put(FIRST + n * 8, value)

    def pack(self, data):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
        data = deflate.compress(data) + deflate.flush()
        self.image[DATA + 1536 + 3:] = data
        return self.entry(5, compressed(DATA + 1536 + 3, len(data)))


def case(name, image, outcome, pattern=""):
    with open(os.path.join(directory, name + ".qcow"), "wb") as out:
        out.write(image.image)
    print(name, outcome, pattern, sep="\t")


def refused(name, pattern, **fields):
    case(name, Image(**fields), "open", pattern)


def used(name, image, pattern):
    case(name, image, "use", pattern)


with open(os.path.join(directory, "good.raw"), "wb") as out:
    out.write(content)
case("good", Image(), "read")
os.symlink("/etc/passwd", os.path.join(directory, "link"))

for value in (0xff, 0x1f, 8, 17, 0):
    refused(f"cluster-{value:x}", f"cluster_bits {value} ", cluster_bits=value)
for value in (0xff, 5, 14, 0x1b, 0):
    refused(f"l2-{value:x}", f"l2_bits {value} ", l2_bits=value)
for value in (0, 1, 0xeeeeeeeeeeeeeeee, 0x7fffffffffffffff, (1 << 64) - 1, (1 << 63) - 512, 1 << 45):
    refused(f"size-{value:x}", f"size {value} ", size=value)
for value in (0, 47, 1 << 20, (1 << 64) - 8, 1 << 63, DATA + 2000):
    refused(f"l1-{value:x}", f"l1_table_offset {value}", l1_at=value)
refused("l1-large", "l1_table_offset 512: a table of 1048576 entries", size=1 << 35)
for value in (0, 1024, 0x7fffffff, 0xffffffff):
    refused(f"name-size-{value:x}", f"backing_file_size {value} ", name_at=256, name_size=value)
for value in (1, 1 << 30, (1 << 64) - 1):
    refused(f"name-at-{value:x}", f"backing_file_offset {value}", name_at=value, name_size=10)
refused("name-nul", "NUL byte", name_at=256, name_size=5, backing=b"ab\0de")
for name, text in (("system", b"/etc/passwd"), ("link", b"link"), ("fifo", b"canary"), ("json", b'json:{"driver":"file"}'),
                   ("itself", b"name-itself.qcow"), ("good", b"good.qcow")):
    refused("name-" + name, "does not state its format", name_at=256, name_size=len(text), backing=text)
refused("crypt-1", "crypt_method 1", crypt=1)
refused("crypt-2", "crypt_method 2", crypt=2)
refused("version-0", "version 0 ", version=0)
refused("version-4", "version 4 ", version=4)

for name, value, pattern in (("far", 1 << 30, "behind the end"), ("max", (1 << 63) - 512, "behind the end"),
                             ("header", 0x200, "header or the L1"), ("low", 0x800 + 3, "not aligned to a sector"),
                             ("low-bit", DATA | 1, "not aligned to a sector"), ("cut", DATA + 1536, "behind the end")):
    used("entry-" + name, Image().entry(1, value), f"L2 entry 0x{value:x} of guest offset 512 .*{pattern}")
used("packed-0", Image().entry(5, compressed(DATA + 1539, 0)), "guest offset 2560 .*length of 0")
used("packed-far", Image().entry(5, compressed(1 << 40, 10)), "guest offset 2560 .*behind the end")
used("packed-across", Image().entry(5, compressed(DATA + 1539, 500)), "guest offset 2560 .*behind the end")
used("packed-header", Image().entry(5, compressed(0, 40)), "guest offset 2560 .*header or the L1")
used("packed-rubbish", Image().entry(5, compressed(DATA, 300)), "guest offset 2560 unpacks to")
used("packed-bomb", Image().pack(bytes(100000)), "guest offset 2560 unpacks to 512 bytes|unpacks to")
used("packed-short", Image().pack(bytes(511)), "guest offset 2560 unpacks to 511 bytes")
used("l1-entry-far", Image().put(L1, 1 << 40), "L1 entry 0x10000000000 .*behind the end")
used("l1-entry-max", Image().put(L1, (1 << 64) - 1), "L1 entry 0xffffffffffffffff .*behind the end")
used("l1-entry-header", Image().put(L1, 8), "L1 entry 0x8 .*header or the L1")
used("l1-entry-cut", Image().put(L1, DATA + 1500), "L1 entry .*behind the end")
