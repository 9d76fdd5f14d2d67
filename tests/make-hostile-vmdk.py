#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-vmdk.py DIRECTORY: writes crafted VMDKs and prints what must become of each; see lib-hostile.sh.

The base of all is a disk of 16 grains of 4 KiB, of which 0, 1, 2, 5 and 15 are there; grain tables have 4 entries
each. Extents in files of their own are called NAME-extent1.vmdk."""
import os
import struct
import sys
import zlib

directory = sys.argv[1]
GRAIN, COUNT, ENTRIES = 4096, 16, 4
SIZE = GRAIN * COUNT
TEXT, RGD, GD, DATA = 1, 3, 8, 16  # sectors; the tables of a directory follow it
ALL = (1 << 64) - 1
PRESENT = (0, 1, 2, 5, 15)
content = bytearray(SIZE)
for n in PRESENT:
    for k in range(8):
        content[n * GRAIN + k * 512:n * GRAIN + (k + 1) * 512] = bytes([n * 8 + k + 1]) * 512


def path(name):
    return os.path.join(directory, name)


def write(name, data):
    with open(path(name), "wb") as out:
        out.write(data)


def descriptor(*extents, cid="12345678", parent="ffffffff", kind="custom", more=""):
    lines = ["# Disk DescriptorFile", "version=1"]
    lines += [f"CID={cid}"] if cid is not None else []
    lines += [f"parentCID={parent}"] if parent is not None else []
    return "\n".join(lines + [f'createType="{kind}"', more, *extents, ""]).encode()


def header(version=1, flags=3, capacity=SIZE // 512, grain=GRAIN // 512, text_at=TEXT, text_size=2, entries=ENTRIES, rgd=RGD,
           gd=GD, overhead=DATA, unclean=0, newlines=b"\n \r\n", compression=0, magic=b"KDMV"):
    return struct.pack("<4sIIQQQQIQQQB4sH", magic, version, flags, capacity, grain, text_at, text_size, entries, rgd, gd,
                       overhead, unclean, newlines, compression).ljust(512, b"\0")


class Sparse:
    """monolithicSparse, or an extent of its kind."""

    def __init__(self, text=None, **fields):
        self.head = header(**fields)
        self.text = descriptor('RW 128 SPARSE "old name.vmdk"', kind="monolithicSparse") if text is None else text
        self.tables = [[0] * ENTRIES for _ in range(COUNT // ENTRIES)]
        self.gd = [GD + 1 + i for i in range(COUNT // ENTRIES)]
        self.rgd = [RGD + 1 + i for i in range(COUNT // ENTRIES)]
        self.rtables = None
        self.data = bytearray()
        self.length = None
        for place, grain in enumerate(PRESENT):
            self.entry(grain, DATA + place * 8)
            self.data += content[grain * GRAIN:(grain + 1) * GRAIN]

    def entry(self, grain, value):
        self.tables[grain // ENTRIES][grain % ENTRIES] = value
        return self

    def bytes(self):
        image = bytearray(DATA * 512)
        image[:512] = self.head
        image[TEXT * 512:TEXT * 512 + len(self.text)] = self.text
        for at, gd, tables in ((RGD, self.rgd, self.rtables or self.tables), (GD, self.gd, self.tables)):
            struct.pack_into("<4I", image, at * 512, *gd)
            for i, table in enumerate(tables):
                struct.pack_into("<4I", image, (at + 1 + i) * 512, *table)
        return bytes(image + self.data)[:self.length]

    def save(self, name):
        write(name + ".vmdk", self.bytes())


class Stream:
    def __init__(self, footer_gd=None, footer=True, eos=True, magic=b"KDMV", **fields):
        fields = {"version": 3, "flags": 0x30001, "compression": 1, "rgd": 0, "gd": ALL, **fields}
        self.head = header(**fields)
        self.fields, self.footer_gd, self.footer, self.eos, self.magic = fields, footer_gd, footer, eos, magic
        self.sizes, self.sectors, self.packed = {}, {}, {}
        self.length = None

    @staticmethod
    def marker(sectors, kind):
        return struct.pack("<QII", sectors, 0, kind).ljust(512, b"\0")

    def record(self, grain):
        packed = self.packed.get(grain) or zlib.compress(bytes(content[grain * GRAIN:(grain + 1) * GRAIN]))
        size = self.sizes.get(grain, len(packed))
        record = struct.pack("<QI", self.sectors.get(grain, grain * 8), size) + packed
        return record + bytes(-len(record) % 512)

    def bytes(self):
        text = descriptor('RDONLY 128 SPARSE "x.vmdk"', kind="streamOptimized")
        image = bytearray(self.head + text.ljust(1024, b"\0")).ljust(DATA * 512, b"\0")
        gd = []
        for table in range(COUNT // ENTRIES):
            entries = [0] * ENTRIES
            for grain in range(table * ENTRIES, (table + 1) * ENTRIES):
                if grain in PRESENT:
                    entries[grain % ENTRIES] = len(image) // 512
                    image += self.record(grain)
            if any(entries):
                gd.append(len(image) // 512 + 1)
                image += self.marker(1, 1) + struct.pack("<4I", *entries).ljust(512, b"\0")
            else:
                gd.append(0)
        at = len(image) // 512 + 1
        image += self.marker(1, 2) + struct.pack("<4I", *gd).ljust(512, b"\0")
        if self.footer:
            fields = dict(self.fields, gd=at if self.footer_gd is None else self.footer_gd, magic=self.magic)
            image += self.marker(1, 3) + header(**fields)
        if self.eos:
            image += bytes(512)
        return bytes(image)[:self.length]

    def save(self, name):
        write(name + ".vmdk", self.bytes())


class Several:
    """A descriptor, and perhaps extents beside it."""

    def __init__(self, text, *extents):
        self.text, self.extents = text, extents

    def save(self, name):
        write(name + ".vmdk", self.text.replace(b"NAME", name.encode()))
        for i, extent in enumerate(self.extents):
            write(f"{name}-extent{i + 1}.vmdk", extent.replace(b"NAME", name.encode()))


def cowd(version=1, capacity=128, grain=8, gd=4, count=1, entries=None, magic=b"COWD", gd_entry=8, length=None):
    image = bytearray(64 * 512)
    struct.pack_into("<4sIIIIIII", image, 0, magic, version, 3, capacity, grain, gd, count, 100)
    struct.pack_into("<I", image, 4 * 512, gd_entry)
    for place, n in enumerate(PRESENT):
        struct.pack_into("<I", image, 8 * 512 + n * 4, 64 + place * 8)
        image += content[n * GRAIN:(n + 1) * GRAIN]
    for n, value in (entries or {}).items():
        struct.pack_into("<I", image, 8 * 512 + n * 4, value)
    return bytes(image)[:length]


def sesparse(version=0x200000001, grain=8, table=64, flags=0, replay=0, gd_entry=0x1000000000000000, entries=None,
             magic=0xcafebabe, volatile=0xcafecafe, capacity=128, gd_size=1):
    image = bytearray(72 * 512)
    struct.pack_into("<6Q", image, 0, magic, version, capacity, grain, table, flags)
    for at, offset, size in ((80, 1, 1), (128, 2, gd_size), (144, 8, 64), (192, 72, 1000)):
        struct.pack_into("<2Q", image, at, offset, size)
    struct.pack_into("<4Q", image, 512, volatile, 0, 0, replay)
    struct.pack_into("<Q", image, 1024, gd_entry)
    for place, n in enumerate(PRESENT):
        number = place + 1 if place else 0
        struct.pack_into("<Q", image, 8 * 512 + n * 8,
                         3 << 60 | (number & 0xfff) << 48 | number >> 12)
    image += content[0:GRAIN] + bytes(GRAIN) + b"".join(bytes(content[n * GRAIN:(n + 1) * GRAIN]) for n in PRESENT[1:])
    for n, value in (entries or {}).items():
        struct.pack_into("<Q", image, 8 * 512 + n * 8, value)
    return bytes(image)


def case(name, image, outcome, pattern=""):
    image.save(name)
    print(name, outcome, pattern, sep="\t")


def refused(name, image, pattern):
    case(name, image, "open", pattern)


def used(name, image, pattern):
    case(name, image, "use", pattern)


def reads(name, image, data=content):
    write(name + ".raw", data)
    case(name, image, "read")


def changed(*grains):
    data = bytearray(content)
    for n in grains:
        data[n * GRAIN:(n + 1) * GRAIN] = bytes(GRAIN)
    return data


# ---- what is right ----------------------------------------------------------------------------------

reads("good", Sparse())
reads("stream", Stream())
reads("flat", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 2'), bytes(1024) + content))
reads("vmfs", Several(descriptor('RW 128 VMFS "NAME-extent1.vmdk"'), content))
reads("vmfs-offset", Several(descriptor('RW 128 VMFS "NAME-extent1.vmdk" 0'), content))
reads("cowd", Several(descriptor('RW 128 VMFSSPARSE "NAME-extent1.vmdk"'), cowd()))
reads("sesparse", Several(descriptor('RW 128 SESPARSE "NAME-extent1.vmdk"'), sesparse()))
for kind, make in (("VMFSSPARSE", cowd), ("SESPARSE", sesparse), ("SPARSE", lambda entries: Sparse().bytes())):
    under = bytearray(b"\x55" * SIZE)
    for n in (0, 2, 5, 15) if kind != "SPARSE" else PRESENT:
        under[n * GRAIN:(n + 1) * GRAIN] = content[n * GRAIN:(n + 1) * GRAIN]
    reads("delta-" + kind.lower(), Several(
        descriptor(f'RW 128 {kind} "NAME-extent1.vmdk"', parent="12345678", more='parentFileNameHint="NAME-extent2.vmdk"'),
        make(entries={1: 0}), descriptor('RW 128 VMFS "NAME-extent3.vmdk"', kind="vmfs"), b"\x55" * SIZE), under)
reads("extent", Several(descriptor('RW 128 SPARSE "NAME-extent1.vmdk"'), Sparse(text=b"").bytes()))
reads("row", Several(descriptor('RW 64 FLAT "NAME-extent1.vmdk" 0', 'RW 7 ZERO', 'RDONLY 64 SPARSE "NAME-extent2.vmdk"'),
                     content, Sparse(text=b"").bytes()), content[:32768] + bytes(7 * 512) + content[:32768])
reads("size-of-the-descriptor", Sparse(text=descriptor('RW 100 SPARSE "x"', kind="monolithicSparse")), content[:51200])
reads("rgd-alone", Sparse(gd=1 << 40))
reads("gd-entry-absent", (lambda s: (s.gd.__setitem__(1, 0), s)[1])(Sparse(flags=1)), changed(5))
reads("zeroed", Sparse(version=2, flags=7).entry(1, 1), changed(1))
merge = Sparse(unclean=1)
merge.rtables = [list(t) for t in merge.tables]
merge.tables[0][1] = 0
reads("interrupted", merge)
reads("stream-no-eos", Stream(eos=False))


class Unmarked(Stream):
    """Nothing says which grain it is; the disk is read by its tables."""

    def record(self, grain):
        return super().record(grain)[12:] + bytes(12)


reads("stream-unmarked", Unmarked(flags=0x10001))
bomb = Stream()
bomb.packed[1] = zlib.compress(bytes(8 << 20), 9)
reads("stream-bomb", bomb, changed(1))
padded = Stream()
padded.save("stream-padded")
write("stream-padded.vmdk", padded.bytes() + bytes(5 * 512))
write("stream-padded.raw", content)
print("stream-padded", "read", "", sep="\t")
reads("cr-only", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 0').replace(b"\n", b"\r"), content))
reads("crlf", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 0').replace(b"\n", b"\r\n"), content))
reads("comments", Several(b"\n# first\n" + descriptor('RW 128 FLAT "NAME-extent1.vmdk" 0',
                                                      more="# parentCID=11111111\n#RW 1 FLAT \"/etc/passwd\" 0"), content))
reads("quotes", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 0', more='ddb.comment="CID=9 \\"x"'), content))

# ---- 47: where extents may not lead -----------------------------------------------------------------

os.symlink("/etc/passwd", path("link"))
os.mkdir(path("folder"))
for name, extent, pattern in (
        ("system", "/etc/passwd", "outside the allowed directories"),
        ("shadow", "../../../../../../../etc/passwd", "outside the allowed directories"),
        ("symlink", "link", "outside the allowed directories"),
        ("zero", "/dev/zero", "neither a regular file"),
        ("null", "/dev/null", "neither a regular file"),
        ("self-mem", "/proc/self/mem", "outside the allowed directories|not a regular file"),
        ("fifo", "canary", "neither a regular file"),
        ("folder", "folder", "is a directory"),
        ("dot", ".", "is a directory"),
        ("json", 'json:{"driver":"file"}', "json: description"),
        ("url", "nbd://localhost/x", "protocol"),
        ("windows", "C:\\\\x.vmdk", "protocol"),
        ("escape", "a\x1bb", "control character"),
        ("tab", "a\tb", "control character"),
        ("missing", "missing.vmdk", "No such file"),
        ("itself", "NAME.vmdk", "loop"),
        ("dot-itself", "./NAME.vmdk", "loop")):
    refused("extent-" + name, Several(descriptor(f'RW 1 FLAT "{extent}" 0')), f"extent-{name}.*({pattern})")
refused("extent-newline", Several(descriptor('RW 1 FLAT "a\n" 0')), "no file name in quotes")
refused("extent-twice", Several(descriptor(*['RW 128 FLAT "NAME-extent1.vmdk" 0'] * 2), content), "already a data file")
refused("extent-descriptor", Several(descriptor('RW 1 SPARSE "NAME-extent1.vmdk"'),
                                     descriptor('RW 1 FLAT "/etc/passwd" 0').ljust(600, b"\n")), "magic 0x")
refused("extent-short", Several(descriptor('RW 129 FLAT "NAME-extent1.vmdk" 0'), content), "65536 bytes, 66048 are needed")
refused("extent-beyond", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 1'), content), "65536 bytes, 66048 are needed")
refused("extents-many", Several(descriptor(*['RW 1 ZERO'] * 5000)), "more than 4096 extents")
refused("extents-million", Several(descriptor(*['RW 1 FLAT "/etc/passwd" 0'] * 1000000)), "larger than 1048576")
refused("extent-alone", Sparse(text=b"", text_size=0), "without a descriptor")
write("cowd-alone.vmdk", cowd())
print("cowd-alone", "open", "without a descriptor", sep="\t")
write("sesparse-alone.vmdk", sesparse())
print("sesparse-alone", "open", "without a descriptor", sep="\t")
refused("monolithic-elsewhere", Sparse(text=descriptor('RW 1 FLAT "/etc/passwd" 0', kind="monolithicSparse")),
        "its data lies elsewhere")
refused("monolithic-two", Sparse(text=descriptor(*['RW 64 SPARSE "x"'] * 2, kind="monolithicSparse")),
        "its data lies elsewhere")

# ---- 48: the header of a sparse extent --------------------------------------------------------------

for value in (0, 3, 8192, 0x200001, 1 << 31, 1 << 55, ALL):
    refused(f"grain-{value:x}", Sparse(grain=value), f"grainSize {value} ")
for value in (0, 513, 1 << 31):
    refused(f"entries-{value:x}", Sparse(entries=value), f"numGTEsPerGT {value} ")
for value in (0, 1 << 63, 1 << 56, ALL):
    refused(f"capacity-{value:x}", Sparse(capacity=value), f"capacity {value} ")
for value in (127, 1 << 40, (1 << 53) - 1):
    refused(f"capacity-{value:x}", Sparse(capacity=value), f"capacity {value}")
refused("capacity-afl", Sparse(capacity=1 << 45, entries=512, grain=128), "grain directory")
for value in (1 << 20, 1 << 55, ALL):
    refused(f"gd-{value:x}", Sparse(flags=1, gd=value), "gdOffset .* does not lie inside")
refused("gd-zero", Sparse(flags=1, gd=0), "gdOffset 0")
refused("rgd-far", Sparse(rgd=1 << 20), "rgdOffset 1048576")
refused("overhead", Sparse(overhead=1 << 20), "overHead 1048576")
refused("version-0", Sparse(version=0), "version 0 ")
refused("version-4", Sparse(version=4), "version 4 ")
refused("as-text", Sparse(newlines=b"\n \n\n"), "line ends")
refused("compression-2", Sparse(compression=2), "compressAlgorithm 2")
refused("compression-without-flag", Sparse(compression=1), "compressAlgorithm 1")
refused("flag-without-compression", Sparse(flags=0x10003), "compressAlgorithm 0")
refused("markers-alone", Sparse(flags=0x20003), "markers without compression")
refused("text-far", Sparse(text_at=1 << 30), "does not lie inside the file")
refused("text-long", Sparse(text_size=1 << 30), "does not lie inside the file")
refused("text-wrap", Sparse(text_at=ALL, text_size=ALL), "does not lie inside the file")
refused("text-empty", Sparse(text=b""), "there is no version")

# ---- 49: tables -------------------------------------------------------------------------------------

for name, value, pattern in (("end", 56, "behind the end"), ("far", 0xffffffff, "behind the end"),
                             ("one", 1, "flag of zeroed grains"), ("text", 2, "header or a directory"),
                             ("gd", GD, "header or a directory"), ("rgd", RGD, "header or a directory")):
    used("entry-" + name, Sparse().entry(1, value), f"guest offset 4096 .*{pattern}")
used("entry-cut", (lambda s: (s.data.__delitem__(slice(-512, None)), s)[1])(Sparse()), "guest offset 61440 .*behind the end")
refused("gd-equal", (lambda s: (s.gd.__setitem__(1, GD + 1), s)[1])(Sparse()), "grain table 0x9 twice")
refused("gd-entry-far", (lambda s: (s.gd.__setitem__(1, 1 << 30), s)[1])(Sparse()), "entry 1 of the grain directory")
refused("rgd-entry-far", (lambda s: (s.rgd.__setitem__(2, 1 << 30), s)[1])(Sparse()), "entry 2 of the grain directory")

# ---- 50: streams ------------------------------------------------------------------------------------


def stream(grain=None, size=None, sector=None, packed=None, **fields):
    image = Stream(**fields)
    if size is not None:
        image.sizes[grain] = size
    if sector is not None:
        image.sectors[grain] = sector
    if packed is not None:
        image.packed[grain] = packed
    return image


used("stream-size-0", stream(1, size=0), "says that it has 0 packed bytes")
used("stream-size-max", stream(1, size=0xffffffff), "says that it has 4294967295 packed bytes")
used("stream-size-more", stream(1, size=600), "says that it has 600 packed bytes")
used("stream-sector", stream(1, sector=16), "grain of sector 8 should be is that of sector 16")
used("stream-short", stream(1, packed=zlib.compress(bytes(4095))), "unpacks to 4095 bytes")
used("stream-garbage", stream(1, packed=b"\x78\x9c" + b"\xff" * 100), "grain at offset 4096 is damaged")
used("stream-raw-deflate", stream(1, packed=zlib.compress(bytes(4096))[2:-4]), "grain at offset 4096 is damaged")
refused("stream-no-footer", Stream(footer=False), "no footer")
refused("stream-other-footer", Stream(magic=b"KDMW"), "no footer")
refused("stream-footer-again", Stream(footer_gd=ALL), "footer contradicts")
refused("stream-footer-far", Stream(footer_gd=1 << 40), "gdOffset 1099511627776")
cut = Stream()
cut.length = 1024
refused("stream-1k", cut, "overHead 16|does not lie inside")
cut = Stream(overhead=1)
cut.length = 1536
refused("stream-1k-text", cut, "no footer")

# ---- 51: lines --------------------------------------------------------------------------------------

for name, line, pattern in (
        ("vmfs-1", 'RW 12582912 VMFS "x-flat.vmdk" 1', "begins at offset 0"),
        ("flat-no-offset", 'RW 1 FLAT "x"', "not an offset"),
        ("negative", 'RW -1 FLAT "x" 0', "size in sectors"),
        ("huge", 'RW 18446744073709551616 FLAT "x" 0', "size in sectors"),
        ("wraps", 'RW 36028797018963968 FLAT "x" 0', "size in sectors"),
        ("offset-negative", 'RW 1 FLAT "x" -1', "not an offset"),
        ("offset-wraps", 'RW 1 FLAT "x" 36028797018963968', "not an offset"),
        ("no-size", 'RW FLAT "x" 0', "device or unknown|size in sectors"),
        ("device", 'RW 1 VMFSRDM "/dev/sda"', "device or unknown"),
        ("noaccess", 'NOACCESS 1 FLAT "x" 0', "denied"),
        ("sum", "\n".join(['RW 9007199254740992 ZERO'] * 3), "larger than 2\\^62"),
        ("rubbish", "what is this", "neither a comment")):
    refused("line-" + name, Several(descriptor(line)), pattern)
refused("nul", Several(descriptor('RW 128 FLAT "NAME-extent1.vmdk" 0') + b"\0RW 1 ZERO\n"), "NUL byte")
refused("version-9", Several(descriptor("RW 1 ZERO").replace(b"version=1", b"version=9")), "version between 1 and 4")
for kind in ("fullDevice", "partitionedDevice", "vmfsRaw", "vmfsRDM", "vmfsPassthroughRawDeviceMap", "unheard"):
    refused("type-" + kind, Several(descriptor("RW 1 ZERO", kind=kind)), f'createType "{kind}"')
with open(path("gigabyte.vmdk"), "wb") as out:
    out.write(descriptor("RW 1 ZERO"))
    out.truncate(1 << 30)
print("gigabyte", "open", "1073741824 bytes .* larger than 1048576", sep="\t")

# ---- 52: parents ------------------------------------------------------------------------------------

refused("no-cid", Several(descriptor("RW 1 ZERO", cid=None)), "no CID")
refused("cid-twice", Several(descriptor("RW 1 ZERO", more="CID=1")), "twice")
refused("cid-rubbish", Several(descriptor("RW 1 ZERO", cid="xyz")), "hexadecimal")
refused("cid-long", Several(descriptor("RW 1 ZERO", cid="123456789")), "hexadecimal")
hint = 'parentFileNameHint="NAME-extent1.vmdk"'
refused("parent-changed", Several(descriptor("RW 1 ZERO", parent="11111111", more=hint), descriptor("RW 1 ZERO")),
        "parentCID is 11111111, the CID of the parent 12345678")
refused("parent-missing", Several(descriptor("RW 1 ZERO", parent="11111111", more=hint)), "No such file")
refused("parent-unnamed", Several(descriptor("RW 1 ZERO", parent="11111111")), "does not name its parent")
refused("parent-contradiction", Several(descriptor("RW 1 ZERO", more=hint)), "parentCID says there is none")
refused("parent-itself", Several(descriptor("RW 1 ZERO", parent="12345678", more=hint.replace("-extent1", ""))), "loop")
refused("parent-system", Several(descriptor("RW 1 ZERO", parent="1", more='parentFileNameHint="/etc/passwd"')),
        "outside the allowed directories")
refused("parent-uuid", Several(descriptor("RW 1 ZERO", more='ddb.uuid.parent="7fdbbc4d-092e-4b9b-af74-1753b9cca6ab"')),
        "does not name its parent")
refused("parent-uuid-rubbish", Several(descriptor("RW 1 ZERO", more='ddb.uuid.parent="7fdbbc4d"')), "not a UUID")
child = descriptor("RW 128 VMFSSPARSE \"NAME-extent1.vmdk\"", parent="11111111")
refused("delta-without-parent", Several(child, cowd()), "does not name its parent")

# ---- 53: seSparse and COWD --------------------------------------------------------------------------


def se(**fields):
    return Several(descriptor('RW 128 SESPARSE "NAME-extent1.vmdk"'), sesparse(**fields))


def cow(**fields):
    return Several(descriptor('RW 128 VMFSSPARSE "NAME-extent1.vmdk"'), cowd(**fields))


refused("se-magic", se(magic=1), "magic 0x1 ")
refused("se-version", se(version=0x200000002), "seSparse version 0x200000002")
refused("se-grain", se(grain=16), "grain_size 16")
refused("se-table", se(table=32), "grain_table_size 32")
refused("se-flags", se(flags=1), "flags 0x1 ")
refused("se-replay", se(replay=1), "replay_journal 1")
refused("se-volatile", se(volatile=5), "magic 0x5 ")
refused("se-capacity", se(capacity=127), "capacity 127")
refused("se-capacity-max", se(capacity=ALL), "capacity|grain directory")
refused("se-gd-size", se(gd_size=0), "0 sectors is too small")
refused("se-gd-high", se(gd_entry=0x2000000000000000), "0x2000000000000000")
refused("se-gd-number", se(gd_entry=0x1000000000000005), "entry 0 of the grain directory")
refused("se-gd-number-max", se(gd_entry=0x10000000ffffffff), "0x10000000ffffffff")
reads("se-gd-absent", se(gd_entry=0), bytes(SIZE))
reads("se-unmapped", se(entries={1: 1 << 60, 2: 2 << 60 | 77}), changed(1, 2))
for nibble in range(4, 16):
    used(f"se-state-{nibble:x}", se(entries={1: nibble << 60}), "unknown state")
used("se-payload", se(entries={1: 5}), "is not allocated")
used("se-far", se(entries={1: 3 << 60 | 0xffff}), "behind the end")
used("se-max", se(entries={1: 0x3fffffffffffffff}), "behind the end")
refused("cowd-magic", cow(magic=b"COWX"), "not that of a COWD")
refused("cowd-version", cow(version=2), "COWD version 2")
refused("cowd-grain-0", cow(grain=0), "grainSize 0")
refused("cowd-grain-3", cow(grain=3), "grainSize 3")
refused("cowd-grain-max", cow(grain=0x80000000), "grainSize 2147483648")
refused("cowd-capacity", cow(capacity=127), "capacity 127")
refused("cowd-count", cow(capacity=0xffffffff, grain=1), "numGDEntries 1 ")
refused("cowd-gd", cow(gd=1 << 24), "gdOffset 16777216")
refused("cowd-gd-0", cow(gd=0), "gdOffset 0")
refused("cowd-gd-entry", cow(gd_entry=1 << 20), "entry 0 of the grain directory")
refused("cowd-short", cow(length=100), "100 bytes, 512 are needed")
used("cowd-entry", cow(entries={1: 1 << 20}), "behind the end")
used("cowd-entry-gd", cow(entries={1: 4}), "header or a directory")
reads("cowd-gd-absent", cow(gd_entry=0), bytes(SIZE))
