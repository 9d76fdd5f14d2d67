#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-vhd.py DIRECTORY [BLOCK]: writes crafted VHDs and prints what must become of each; see lib-hostile.sh.

The base of all is a dynamic disk of 64 KiB in blocks of 16 KiB, of which the third is absent and the second is
half there (other sizes of BLOCK make the corpus of the fuzz target): copy of the footer, header, locators (2 sectors), BAT, three blocks with their bitmaps, footer."""
import os
import struct
import sys

directory = sys.argv[1]
BLOCK = int(sys.argv[2]) if len(sys.argv) > 2 else 16384
SIZE = 4 * BLOCK
HEADER, LOCATORS, BAT, BLOCKS = 512, 1536, 2560, 3072
STRIDE = 512 + BLOCK
ABSENT, ALL = 0xffffffff, (1 << 64) - 1
content = b"".join(bytes([i + 1]) * 512 for i in range(SIZE // 512))


def checksum(data, at):
    return ~sum(b for i, b in enumerate(data) if not at <= i < at + 4) & 0xffffffff


class Image:
    def __init__(self, kind=3):
        self.footer = bytearray(512)
        self.start = None  # the copy at the start, if it is another one
        self.header = bytearray(1024)
        self.head_at, self.length = HEADER, None
        self.body = bytearray(3 * STRIDE)
        self.rest = bytearray(BLOCKS - LOCATORS)
        self.sums = True
        struct.pack_into(">8sIIQI4sI4sQQIII", self.footer, 0, b"conectix", 2, 0x10000, HEADER, 0, b"test", 0, b"Wi2k",
                         SIZE, SIZE, 0xffff10ff, kind, 0)
        self.footer[68:84] = bytes(range(16))
        struct.pack_into(">8sQQIIII", self.header, 0, b"cxsparse", ALL, BAT, 0x10000, SIZE // BLOCK, BLOCK, 0)
        self.bat(BLOCKS // 512, (BLOCKS + STRIDE) // 512, ABSENT, (BLOCKS + 2 * STRIDE) // 512)
        for place, block in enumerate((0, 1, 3)):
            at = place * STRIDE
            self.body[at:at + 4] = b"\xff\xff\xff\xff" if block != 1 else b"\xff\xff\0\0"
            self.body[at + 512:at + STRIDE] = content[block * BLOCK:(block + 1) * BLOCK]

    def put(self, offset, form, *values):
        """In the footer."""
        struct.pack_into(form, self.footer, offset, *values)
        return self

    def head(self, offset, form, *values):
        struct.pack_into(form, self.header, offset, *values)
        return self

    def bat(self, *entries):
        struct.pack_into(f">{len(entries)}I", self.rest, BAT - LOCATORS, *entries)
        return self

    def locator(self, slot, code, name, length=None, offset=None):
        at = LOCATORS + slot % 2 * 512
        self.head(576 + slot * 24, ">IIIIQ", code, 512, len(name) if length is None else length, 0,
                  at if offset is None else offset)
        self.rest[at - LOCATORS:at - LOCATORS + len(name)] = name
        return self

    def sum(self, data, at):
        if self.sums:
            struct.pack_into(">I", data, at, checksum(data, at))

    def save(self, name):
        self.sum(self.footer, 64)
        self.sum(self.header, 36)
        data = bytearray((self.start or self.footer) + self.header + self.rest + self.body + self.footer)
        with open(os.path.join(directory, name + ".vhd"), "wb") as out:
            out.write(data if self.length is None else data[:self.length])


def case(name, image, outcome, pattern=""):
    image.save(name)
    print(name, outcome, pattern, sep="\t")


def refused(name, image, pattern):
    case(name, image, "open", pattern)


def reads(name, image, expected=None):
    if expected is None:
        expected = content[:BLOCK + BLOCK // 2] + bytes(BLOCK // 2 + BLOCK) + content[3 * BLOCK:]
    with open(os.path.join(directory, name + ".raw"), "wb") as out:
        out.write(expected)
    case(name, image, "read")


def child(name="parent.vhd"):
    return Image(4).head(64, ">" + str(2 * len(name)) + "s", name.encode("utf-16-be"))


W2RU, W2KU = 0x57327275, 0x57326b75

reads("good", Image())
reads("footer-511", Image())  # of Virtual PC before 2004: one byte less
path = os.path.join(directory, "footer-511.vhd")
with open(path, "rb") as image:
    whole = image.read()
with open(path, "wb") as image:
    image.write(whole[:-1])
reads("all-bits", Image().bat(BLOCKS // 512, (BLOCKS + STRIDE) // 512, ABSENT, ABSENT),
      content[:BLOCK + BLOCK // 2] + bytes(BLOCK // 2 + 2 * BLOCK))
reads("more-entries", Image().head(28, ">I", 128))

# ---- footer
for name, version in (("version-2", 0x20000), ("version-0", 0), ("version-max", ABSENT)):
    refused(name, Image().put(12, ">I", version), "vhd: file format version 0x.* is not 1.x")
for kind in (0, 1, 5, 6, 0x80000003, ABSENT):
    refused(f"type-{kind:x}", Image().put(60, ">I", kind), f"vhd: disk type {kind} is neither")
for name, size in (("0", 0), ("odd", 513), ("2-63", 1 << 63), ("max", ALL), ("max-512", ALL - 511),
                   ("2040g", (2040 << 30) + 512)):
    refused("size-" + name, Image().put(48, ">Q", size), f"vhd: current size {size} is not a multiple")
refused("size-large", Image().put(48, ">Q", SIZE + 512), "vhd: max table entries 4: 5 are needed")
reads("size-small", Image().put(48, ">Q", 2048), content[:2048])
reads("geometry-0", Image().put(56, ">I", 0))
for name, offset in (("0", 0), ("inside", 256), ("max", ALL), ("end", 1 << 20), ("2-63", 1 << 63), ("last", ALL - 1023)):
    refused("data-offset-" + name, Image().put(16, ">Q", offset),
            "vhd: the dynamic header of 1024 bytes at 0x.*x? is not between|there is no dynamic header")
refused("data-offset-elsewhere", Image().put(16, ">Q", BLOCKS), "there is no dynamic header where the footer says")


def fixed(length=SIZE + 512, size=SIZE, offset=ALL):
    image = Image(2).put(16, ">Q", offset).put(48, ">Q", size)
    image.start, image.header, image.rest = content[:512], bytearray(content[512:1536]), bytearray(content[1536:BLOCKS])
    image.body = bytearray(content[BLOCKS:length - 512])
    image.sums = False
    struct.pack_into(">I", image.footer, 64, checksum(image.footer, 64))
    return image


reads("fixed", fixed(), content)
reads("fixed-offset-32", fixed(offset=ABSENT), content)
refused("fixed-short", fixed(length=SIZE), "vhd: current size 65536 does not fit before the footer of a file of 65536")
refused("fixed-2-63", fixed(size=1 << 63), "vhd: current size 9223372036854775808 does not fit")
refused("fixed-max", fixed(size=ALL - 511), "does not fit")
refused("fixed-data-offset", fixed(offset=512), "vhd: data offset 0x200 of a fixed disk is not -1")

broken = Image()
broken.sums = False
refused("checksums", broken, "vhd: the footer's checksum 0x00000000 is wrong")
image = Image()
image.sum(image.footer, 64)
image.start = bytes(image.footer)
image.put(48, ">Q", 2048)
reads("footers-differ", image, content[:2048])
image = Image()
image.start = bytes(512)
reads("start-lost", image)
image = Image()
image.sum(image.footer, 64)
image.start, image.footer, image.sums = bytes(image.footer), bytearray(512), False
struct.pack_into(">I", image.header, 36, checksum(image.header, 36))
reads("end-lost", image)

# ---- header
refused("header-cookie", Image().head(0, ">8s", b"cxsparsE"), "there is no dynamic header")
image = Image()
image.sum(image.footer, 64)
image.sum(image.header, 36)
image.head(32, ">I", 32768).sums = False
refused("header-checksum", image, "vhd: the dynamic header's checksum 0x.* is wrong")
refused("header-version", Image().head(24, ">I", 0x20000), "vhd: dynamic header version 0x00020000 is not 1.x")
for size in (0, 1, 3, 511, 513, 12288, 1 << 31, 1 << 29, ABSENT):
    refused(f"block-size-{size}", Image().head(32, ">I", size), f"vhd: block size {size} is not a power of two")
refused("entries-0", Image().head(28, ">I", 0), "vhd: max table entries 0: 4 are needed")
refused("entries-3", Image().head(28, ">I", 3), "vhd: max table entries 3: 4 are needed")
for entries in (1073741825, ABSENT, 1 << 20):
    refused(f"entries-{entries}", Image().head(28, ">I", entries),
            f"vhd: the block allocation table of {entries * 4} bytes at 0xa00 is not between")
refused("table-huge", Image().put(48, ">Q", 2040 << 30).head(28, ">I", ABSENT).head(32, ">I", 512),
        "vhd: a table of 4278190080 entries is larger than 67108864|max table entries")
for name, offset in (("0", 0), ("copy", 256), ("odd", BAT + 1), ("header", HEADER), ("half", HEADER + 512), ("max", ALL - 511),
                     ("end", 1 << 20), ("2-63", 1 << 63)):
    refused("table-" + name, Image().head(16, ">Q", offset),
            "vhd: (table offset 0x.* is not a multiple|the block allocation table (of|at) .*(is not between|overlaps))")

# ---- blocks
for name, sector in (("0", 0), ("header", 1), ("header-2", 2), ("locators-bat", 4), ("bat", BAT // 512), ("end", 200),
                     ("footer", (BLOCKS + 3 * STRIDE) // 512), ("over-footer", (BLOCKS + 2 * STRIDE) // 512 + 1),
                     ("2-31", 1 << 31), ("2-tib", 0xfffffffe)):
    refused("block-" + name, Image().bat(sector), "vhd: block 0 at sector .* (is not between|lies on the header)")
first, second, third = (BLOCKS + i * STRIDE for i in range(3))
refused("blocks-equal", Image().bat(first // 512, first // 512), "vhd: two blocks, at sectors 6 and 6, overlap")
refused("blocks-overlap", Image().bat(first // 512, first // 512 + 32), "vhd: two blocks, at sectors 6 and 38, overlap")
refused("blocks-last-overlap", Image().bat(third // 512 - 1), "vhd: two blocks, at sectors 39 and 71, overlap")
reads("blocks-backwards", Image().bat(third // 512, ABSENT, ABSENT, first // 512),
      content[3 * BLOCK:] + bytes(2 * BLOCK) + content[:BLOCK])

# ---- parents
refused("no-parent", child(), "backing file .*parent.vhd.*No such file.*|none of its names")
refused("nameless", Image(4), "does not name its parent; give it with --parent")
for name, parent in (("passwd", "/etc/passwd"), ("drive", "C:\\etc\\passwd"), ("share", "\\\\host\\share\\etc\\passwd"),
                     ("device", "\\\\?\\C:\\dev\\zero"), ("dots", "../../../../../../etc/passwd"), ("fifo", "canary"),
                     ("proc", "/proc/self/mem"), ("json", 'json:{"driver":"file"}'), ("nbd", "nbd:localhost:1"),
                     ("url", "http://localhost/x"), ("control", "a\nb"), ("self", None), ("dot", "."),
                     ("directory", "/"), ("long", "x" * 250)):
    for kind, image in (("parent", child), ("locator", lambda n: Image(4).locator(0, W2RU, n.encode("utf-16-le"))),
                        ("absolute", lambda n: Image(4).locator(7, W2KU, n.encode("utf-16-le")))):
        refused(f"{kind}-{name}", image(parent or f"{kind}-{name}.vhd"), "backing file .*" + ("loop" if not parent else ""))
name = "parent.vhd".encode("utf-16-le")
for length in (ABSENT, 1 << 31, 65538):
    refused(f"locator-length-{length}", child().locator(0, W2RU, name, length=length), f"vhd: parent locator 0: {length} bytes")
refused("locator-odd", child().locator(0, W2RU, name, length=19), "vhd: name of the parent: a name in UTF-16 has an odd length")
for at in (0, HEADER, 1 << 20, 1 << 63, ALL):
    refused(f"locator-at-{at}", child().locator(3, W2KU, name, offset=at), "vhd: a parent locator (of|at) .*(is not between|overlaps)")
refused("locator-surrogate", child().locator(0, W2RU, b"a\0\x3d\xd8"), "vhd: name of the parent: .*is not UTF-16")
refused("name-surrogate", Image(4).head(64, ">4s", b"\xd8\x3d\0a"), "vhd: name of the parent: .*is not UTF-16")
for name, size in (("smaller", 2 * BLOCK), ("larger", SIZE)):
    Image().put(48, ">Q", size).save("parent-" + name)
grown, shrunk = (child(f"parent-{name}.vhd").head(40, "16s", bytes(range(16))) for name in ("smaller", "larger"))
refused("child-of-another-size", grown, f"vhd: it has {SIZE} bytes, but its parent .* has {2 * BLOCK}")
reads("child-grown", grown.put(28, "4s", b"tap").bat(ABSENT, ABSENT))
reads("child-shrunk", shrunk.put(28, "4s", b"CTXS").put(48, ">Q", 2 * BLOCK).bat(*[ABSENT] * 4),
      content[:BLOCK + BLOCK // 2] + bytes(BLOCK // 2))
reads("locators-of-no-child", Image().locator(0, W2RU, b"odd", length=ABSENT, offset=ALL))
