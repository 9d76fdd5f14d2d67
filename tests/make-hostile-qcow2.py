#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-qcow2.py DIRECTORY: writes crafted qcow2 images and prints what must become of each.

One line per image, separated by tabs: NAME OUTCOME PATTERN

  open    the image is not opened; the message matches the extended regular expression PATTERN
  use     it opens, but what it maps cannot be read; the message matches
  read    it reads as NAME.raw, which is written as well

The base of all is a disk of 16 KiB in clusters of 4 KiB: header, refcount table, refcount block, L1, L2 and four
clusters of data, one cluster each, in this order.
"""
import os
import struct
import sys
import zlib

C = 4096
REFTABLE, BLOCK, L1, L2, DATA = C, 2 * C, 3 * C, 4 * C, 5 * C
CLUSTERS = 9
COPIED, PACKED = 1 << 63, 1 << 62
PACKED_SHIFT = 62 - (12 - 8)
EXTENSIONS = 112
NAME_AT = 2048
directory = sys.argv[1]
content = b"".join(bytes([i + 1]) * C for i in range(4))


class Image:
    def __init__(self, size=4 * C, version=3):
        self.bytes = bytearray(CLUSTERS * C)
        self.put(0, ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, 12, size, 0, 1, L1, REFTABLE, 1, 0, 0)
        if version == 3:
            self.put(72, ">QQQII", 0, 0, 0, 4, 112)
        self.put(REFTABLE, ">Q", BLOCK)
        self.put(BLOCK, f">{CLUSTERS}H", *[1] * CLUSTERS)
        self.put(L1, ">Q", L2 | COPIED)
        self.put(L2, ">4Q", *[(DATA + i * C) | COPIED for i in range(4)])
        self.bytes[DATA:] = content

    def put(self, offset, form, *values):
        struct.pack_into(form, self.bytes, offset, *values)
        return self

    def extensions(self, *pairs):
        at = EXTENSIONS
        for kind, data in pairs:
            self.put(at, ">II", kind, len(data))
            self.bytes[at + 8:at + 8 + len(data)] = data
            at += 8 + (len(data) + 7) // 8 * 8
        return self

    def backing(self, name, form=b"raw"):
        self.put(8, ">QI", NAME_AT, len(name))
        self.bytes[NAME_AT:NAME_AT + len(name)] = name
        return self.extensions((0xE2792ACA, form)) if form else self

    def packed(self, data, length=None, host=DATA):
        """Guest cluster 0 is compressed: `data`, in a cluster of its own."""
        self.bytes[DATA:DATA + C] = data.ljust(C, b"\0")[:C]
        sectors = (len(data) - 1) // 512 if length is None else length
        return self.put(L2, ">Q", PACKED | sectors << PACKED_SHIFT | host)

    def bitmap(self, *entries, count=None, length=None, offset=DATA):
        """A directory with (type, flags, granularity, name) where guest cluster 0 was; tables in cluster 1."""
        at = DATA
        for kind, flags, granularity, name in entries:
            self.put(at, ">QIIBBHI", DATA + C, 1, flags, kind, granularity, len(name), 0)
            self.bytes[at + 24:at + 24 + len(name)] = name
            at += (24 + len(name) + 7) // 8 * 8
        self.put(L2, ">QQ", 0, 0).put(DATA + C, ">Q", 0).put(88, ">Q", 1)
        return self.extensions((0x23852875, struct.pack(
            ">IIQQ", len(entries) if count is None else count, 0, at - DATA if length is None else length, offset)))

    def write(self, name):
        with open(os.path.join(directory, name + ".qcow2"), "wb") as file:
            file.write(self.bytes)


def case(name, outcome, pattern, image):
    image.write(name)
    print(name, outcome, pattern, sep="\t")


def opens(name, pattern, image):
    case(name, "open", "qcow2.*" + pattern, image)


def fails(name, pattern, image):
    case(name, "use", pattern, image)


def reads(name, image, expected=content):
    with open(os.path.join(directory, name + ".raw"), "wb") as file:
        file.write(expected)
    case(name, "read", "-", image)


def edited(offset, form, *values, **kind):
    return Image(**kind).put(offset, form, *values)


def deflate(data):
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def zstd_frame(size, window=0x50):
    """`size` times the byte 1, as one run-length block."""
    return b"\x28\xb5\x2f\xfd\0" + bytes([window]) + (1 | 1 << 1 | size << 3).to_bytes(3, "little") + b"\1"


def zstd(data):
    return edited(72, ">Q", 8).put(104, ">B", 1).packed(data)


def names():
    """What a guest or a tenant would like to have opened (rows 2 to 4); canary is a FIFO beside the images."""
    parent = os.path.abspath(directory)
    for label, name, why in (
            ("json", b'json:{"driver":"file","filename":"canary"}', "json:"),
            ("protocol", b"nbd://localhost/canary", "protocol"), ("drive", b"fat:rw:canary", "protocol"),
            ("control", b"can\nary", "control character"), ("fifo", b"canary", "regular file"),
            ("absolute-fifo", os.path.join(parent, "canary").encode(), "regular file"),
            ("device", b"/dev/zero", "regular file"), ("directory", b".", "directory"),
            ("system", b"/etc/passwd", "outside the allowed"), ("proc", b"/proc/self/environ", "allowed|regular"),
            ("up", b"../../../../../../../../etc/passwd", "outside the allowed"),
            ("windows", b"\\\\?\\C:\\canary", "No such file|protocol"),
            ("missing", b"nowhere", "No such file"), ("self", b"backing-self.qcow2", "loop")):
        case("backing-" + label, "open", "backing file .*(" + why + ")",
             Image().backing(name, b"qcow2" if label == "self" else b"raw").put(L2, ">4Q", 0, 0, 0, 0))
    case("backing-unstated", "open", "does not state its format", Image().backing(b"canary", None))
    case("backing-odd-format", "open", "unknown format", Image().backing(b"canary", b"vvfat"))
    opens("backing-nul", "NUL", Image().backing(b"can\0ary"))
    for label, name in (("passwd", b"/etc/passwd"), ("json", b'json:{"filename":"canary"}'), ("fifo", b"canary"),
                        ("protocol", b"nbd://canary"), ("self", b"data-file-self.qcow2")):
        case("data-file-" + label, "open", "external data file .*(--allow-root|json:|protocol)",
             edited(72, ">Q", 4).extensions((0x44415441, name)))
    opens("data-file-unnamed", "does not name", edited(72, ">Q", 4))
    opens("data-file-raw-alone", "autoclear_features 0x2", edited(88, ">Q", 2))


def headers():
    for value in (2 ** 63 - 512, 2 ** 64 - 1, 2 ** 61):
        opens(f"size-{value}", "l1_size 1: .*too small.*" + str(value), edited(24, ">Q", value))
    reads("size-odd", edited(24, ">Q", 4 * C - 3), content[:-512])
    opens("version-4", "version 4", edited(4, ">I", 4))
    for value in (0xffffffff, 0x7fffffff, 72, 108):
        opens(f"header-length-{value}", f"header_length {value}", edited(100, ">I", value))
    opens("backing-offset", "backing_file_offset 18446744073709551615", edited(8, ">QI", 2 ** 64 - 1, 1))
    for value in (0xffffffff, 1024):
        opens(f"backing-size-{value}", f"backing_file_size {value}", edited(8, ">QI", NAME_AT, value))
    opens("extension-length", "of 2147483647 bytes runs past", edited(EXTENSIONS, ">II", 1, 0x7fffffff))
    opens("extension-past-name", "of 4000 bytes runs past 2048",
          Image().backing(b"canary").put(EXTENSIONS, ">II", 1, 4000))
    opens("extension-twice", "appears twice", Image().extensions((1, b"a"), (1, b"b")))
    opens("extension-no-end", "no end mark", Image().extensions(*((i + 1, b"") for i in range((C - 112) // 8))))
    for value in (0xffffffff, 0x00020001, 0):
        opens(f"reftable-clusters-{value}", f"refcount_table_clusters {value}", edited(56, ">I", value))
    for field, at in (("refcount_table_offset", 48), ("l1_table_offset", 40)):
        for value in (0x1234567890abcdef, 0xffffffffffff0000):
            opens(f"{field}-{value:x}", f"{field} 0x{value:x}", edited(at, ">Q", value))
    for value in (0xffffffff, 0x7fffffff, 0x10001):
        opens(f"snapshots-{value}", f"nb_snapshots {value}", edited(60, ">I", value))
    for value in (0x1234567890abcdef, 0xffffffffffff0000):
        opens(f"snapshots-offset-{value:x}", f"snapshots_offset 0x{value:x}", edited(60, ">IQ", 1, value))
    for label, offset, size, extra, names_, why in (
            ("extra", L1, 1, 0x7fffffff, 0, "extra_data_size 2147483647"),
            ("names", L1, 1, 0, 0xffff, "run past the end of the file"),
            ("l1-unaligned", 0x400200, 1, 0, 1, "snapshot l1_table_offset 0x400200"),
            ("l1-size", L1, 0x10000000, 0, 1, "l1_size 268435456")):
        opens("snapshot-" + label, "snapshot.*" + why, edited(60, ">IQ", 1, DATA).put(
            DATA, ">QIHHIIQII", offset, size, names_, names_, 0, 0, 0, 0, extra))
    for value in (0xffffffff, 0x7fffffff, 0):
        opens(f"l1-size-{value}", f"l1_size {value}", edited(36, ">I", value))
    for value in (7, 63, 0xffffffff):
        opens(f"refcount-order-{value}", f"refcount_order {value}", edited(96, ">I", value))
    for value in (0, 8, 22, 63, 0xffffffff):
        opens(f"cluster-bits-{value}", f"cluster_bits {value}", edited(20, ">I", value))
    opens("incompatible", "incompatible_features 0x8000000000000000: bit 63", edited(72, ">Q", COPIED))
    reads("dirty", edited(72, ">Q", 1))
    reads("corrupt", edited(72, ">Q", 2))
    opens("compression-type", "compression_type 1 contradicts", edited(104, ">B", 1))
    opens("compression-bit", "compression_type 0 contradicts", edited(72, ">Q", 8))
    opens("compression-255", "compression_type 255", edited(72, ">Q", 8).put(104, ">B", 255))
    opens("extended-small", "cluster_bits 12 is too small", edited(72, ">Q", 16))
    for value in (1, 2, 3):
        opens(f"crypt-{value}", f"crypt_method {value}", edited(32, ">I", value))
    opens("crypt-extension", "crypt_method is 0", Image().extensions((0x0537BE77, bytes(16))))


def bitmaps():
    one = (1, 0, 16, b"one")
    reads("bitmaps", Image().bitmap(one, (1, 0, 16, b"two")), bytes(2 * C) + content[2 * C:])
    for label, why, image in (
            ("none", "nb_bitmaps 0", Image().bitmap(count=0, length=0)),
            ("many", "nb_bitmaps 65536", Image().bitmap(one, count=65536)),
            ("directory-size", "bitmap_directory_size 1099511627776", Image().bitmap(one, length=1 << 40)),
            ("directory-place", "bitmap_directory_offset 0x5008", Image().bitmap(one, offset=DATA + 8)),
            ("directory-short", "contradicts its 1 entries", Image().bitmap(one, length=64)),
            ("name-0", "bitmap 0: name_size 0", Image().bitmap((1, 0, 16, b""))),
            ("name-65535", "bitmap 0: name_size 65535", Image().bitmap(one).put(DATA + 18, ">H", 65535)),
            ("granularity-0", "granularity_bits 0", Image().bitmap((1, 0, 0, b"one"))),
            ("granularity-63", "granularity_bits 63", Image().bitmap((1, 0, 63, b"one"))),
            ("same-name", 'the name "one" appears twice', Image().bitmap(one, one)),
            ("table-reserved", "bitmap table entry 0 0x2", Image().bitmap(one).put(DATA + C, ">Q", 2)),
            ("table-unaligned", "bitmap_table_offset 0x6200", Image().bitmap(one).put(DATA, ">Q", DATA + C + 512)),
            ("table-size", "bitmap_table_size 2147483647", Image().bitmap(one).put(DATA + 8, ">I", 0x7fffffff))):
        opens("bitmap-" + label, why, image)


def tables():
    reads("shared", edited(L2 + 8, ">Q", DATA | COPIED), content[:C] + content[:C] + content[2 * C:])
    for label, at, value, why in (
            ("l1-unaligned", L1, 0x8000000000042a00, "L1 entry 0 0x8000000000042a00 is not aligned"),
            ("l1-beyond", L1, 0x80ffffffffff0000, "L1 entry 0 .*behind the end"),
            ("l1-reserved", L1, 0xbfffffffffff0000, "L1 entry 0 .*reserved bits"),
            ("l1-is-l1", L1, L1 | COPIED, "L1 entry 0 .*another table"),
            ("l1-is-reftable", L1, REFTABLE | COPIED, "L1 entry 0 .*another table"),
            ("l2-unaligned", L2, 0x8000000000052a00, "L2 entry 0x8000000000052a00 .*not aligned"),
            ("l2-zero-unaligned", L2, 0x8000000000052a01, "L2 entry 0x8000000000052a01 .*not aligned"),
            ("l2-beyond", L2, 0x00ffffffffff0000, "L2 entry 0xffffffffff0000 .*behind the end"),
            ("l2-reserved", L2, 0xbfffffffffff0000, "L2 entry 0xbfffffffffff0000 .*reserved bits"),
            ("l2-is-l1", L2, L1 | COPIED, "L2 entry 0x8000000000003000 .*into the header or a table"),
            ("l2-is-reftable", L2, REFTABLE | COPIED, "L2 entry 0x8000000000001000 .*a table"),
            ("packed-header", L2, PACKED | 16, "L2 entry 0x4000000000000010 .*into the header"),
            ("packed-beyond", L2, PACKED | (1 << PACKED_SHIFT) - 1, "L2 entry .*behind the end")):
        fails(label, why, edited(at, ">Q", value))
    # Counts do not matter to a reader.
    for label, at, form, value in (("reftable-unaligned", REFTABLE, ">Q", 0x22a00), ("reftable-empty", REFTABLE, ">Q", 0),
                                   ("header-free", BLOCK, ">H", 0), ("block-free", BLOCK + 4, ">H", 0)):
        reads(label, edited(at, form, value))
    fails("v2-zero", "L2 entry 0x8000000000005001 .*version 2",
          edited(L2, ">Q", DATA | COPIED | 1, version=2))
    for label, entry, bitmap, why in (("both", COPIED, 0x100000001, "both allocated and zero"),
                                      ("nowhere", None, 1, "no cluster")):
        image = Image(size=16384)
        image.bytes = bytearray(6 * 16384)
        image.put(0, ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 14, 16384, 0, 1, 3 * 16384, 16384, 1, 0, 0,
                  16, 0, 0, 4, 112)
        image.put(3 * 16384, ">Q", 4 * 16384 | COPIED)
        image.put(4 * 16384, ">QQ", 5 * 16384 | entry if entry else 0, bitmap)
        fails("subclusters-" + label, why, image)


def packed():
    first = content[:C]
    reads("packed", Image().packed(deflate(first)))
    reads("packed-length-max", Image().packed(deflate(first), length=15))
    fails("packed-less", "zlib cluster does not unpack to 4096 bytes", Image().packed(deflate(first[1:])))
    fails("packed-more", "zlib cluster does not unpack to 4096 bytes", Image().packed(deflate(first + b"x")))
    fails("packed-bomb", "zlib cluster does not unpack", Image().packed(deflate(bytes(1 << 20))))
    fails("packed-noise", "zlib cluster does not unpack", Image().packed(b"\xff" * 2000))
    fails("packed-cut", "zlib cluster does not unpack",
          Image().packed(deflate(bytes(i * i * 7 >> 3 & 255 for i in range(C)))[:512]))
    reads("zstd", zstd(zstd_frame(C)))
    reads("zstd-pieces", zstd(zstd_frame(C // 2) + zstd_frame(0) + zstd_frame(C // 2)))
    for label, data in (("less", zstd_frame(C - 1)), ("more", zstd_frame(C + 1)), ("bomb", zstd_frame(128 * 1024)),
                        ("window", zstd_frame(C, window=0xff)), ("empty-frames", zstd_frame(0) * 200),
                        ("skippable", b"\x50\x2a\x4d\x18\0\0\0\0" * 500), ("noise", b"\xff" * 2000)):
        fails("zstd-" + label, "zstd cluster does not unpack to 4096 bytes", zstd(data))


for write in (names, headers, bitmaps, tables, packed):
    write()
reads("good", Image())
