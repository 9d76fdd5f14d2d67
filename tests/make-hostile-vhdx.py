#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-hostile-vhdx.py DIRECTORY [compact]: writes crafted VHDX images and prints what must become of each; see
lib-hostile.sh.  "compact": the corpus of the fuzz target.

The base of all is a disk of 4 MiB in blocks of 1 MiB: the first is there, the second is not, the third is zero, of
the fourth only the first 64 KiB are not zero."""
import os
import struct
import sys

from vhdx_image import BAT, DISK_SIZE, FILE_PARAMETERS, K, LOCATOR, M, Image, braces, \
    crc32c, entry, locator, write_sparse

directory, compact = sys.argv[1], len(sys.argv) > 2
ALL = (1 << 64) - 1
first, fourth = bytes(range(256)) * 256, b"\x55" * (64 * K)
if compact:
    first, fourth = first[:8], fourth[:8]
first = first.ljust(M, b"\0")
content = first + bytes(2 * M) + fourth.ljust(M, b"\0")


def good(**options):
    image = Image(4 * M, **options)
    image.put_block(0, first)
    image.bat[image.index(2)] = 2
    image.put_block(3, fourth)
    return image


def changed(image, **fields):
    for name, value in fields.items():
        setattr(image, name, value)
    return image


def case(name, image, outcome, pattern=""):
    if compact:
        return image.save_compact(os.path.join(directory, name))
    image.save(os.path.join(directory, name + ".vhdx"))
    return print(name, outcome, pattern, sep="\t")


def refused(name, pattern, image=None, **fields):
    case(name, changed(image or good(), **fields), "open", "VHDX: .*" + pattern)


def reads(name, image, expected=content):
    if compact:
        return case(name, image, "read")
    write_sparse(os.path.join(directory, name + ".raw"), [(0, expected)], len(expected))
    case(name, image, "read")


# ---- header

def damaged(which):
    """A header whose checksum will be wrong: the edit undoes what seal() does."""
    class Broken(Image):
        def header(self, i):
            data = super().header(i)
            if i in which:
                data[4] ^= 1
            return data
    image = good()
    image.__class__ = Broken
    return image


reads("good", good())
reads("header-1-lost", damaged((0,)))
reads("header-2-lost", damaged((1,)))
refused("headers-lost", "neither header", damaged((0, 1)))
refused("headers-signature", "neither header", header_edit=lambda i, h: struct.pack_into("<4s", h, 0, b"HEAD"))
refused("headers-differ", "both headers have SequenceNumber 5 and they are different",
        header_edit=lambda i, h: struct.pack_into("<QB", h, 8, 5, i))
reads("headers-same", changed(good(), header_edit=lambda i, h: struct.pack_into("<Q", h, 8, 1)))
reads("sequence-max", changed(good(), header_edit=lambda i, h: struct.pack_into("<Q", h, 8, ALL - i)))
for version in (0, 2, 65535):
    refused(f"version-{version}", f"Version {version} of the header", version=version)
reads("log-version-clean", changed(good(), log_version=1))
refused("log-version-dirty", "LogVersion 1 is not supported", log_version=1, log_guid=b"g" * 16)

# ---- log

reads("no-log", changed(good(), log_size=0))
refused("log-empty-dirty", "LogLength 0 is not a multiple of 1 MiB, or 0 with entries", log_size=0, log_guid=b"g" * 16)
for size in (1, 4096, M + 4096, (1 << 32) - 1):
    refused(f"log-size-{size}", f"LogLength {size} is not a multiple", log_size=size)
for at in (0, 4096, M + 1, 1 << 40, 1 << 63, ALL, ALL - M + 1):
    refused(f"log-at-{at:x}", f"LogOffset {at} is not a multiple of 1 MiB with 1048576 bytes", log_at=at)
refused("log-long", "LogOffset 1048576 .* with 4293918720 bytes", log_size=4095 * M)
refused("log-no-entry", "the log is in use, but it has no valid entry", log_guid=b"g" * 16)


def dirty(changes, *more, tail=None, flushed=0, last=None, at=0, sequence=9, edit=None, own=None, **options):
    """The log has one entry, or several."""
    image = good(**options)
    image.log_guid = b"g" * 16
    last = image.end if last is None else last
    log = bytearray(image.log_size)
    for i, what in enumerate((changes,) + more):
        data = entry(own or image.log_guid, sequence + i, at, what, tail, flushed, last)
        if edit:
            edit(data)
            struct.pack_into("<I", data, 4, 0)
            struct.pack_into("<I", data, 4, crc32c(data))
        for k in range(0, len(data), 4096):
            where = (at + k) % len(log)
            log[where:where + 4096] = data[k:k + 4096]
        at = (at + len(data)) % len(log)
    image.parts[image.log_at] = log
    return image


def refused_log(name, pattern, *changes, **options):
    refused("log-" + name, pattern, dirty(*changes, **options))


bat_at = good().bat_at
emptied = struct.pack("<QQ", 0, 2).ljust(4096, b"\0")
reads("log-dirty", dirty([(bat_at, emptied)]), bytes(4 * M))
reads("log-zero", dirty([(bat_at, 4096)]), bytes(4 * M))
reads("log-wrapped", dirty([(bat_at, emptied)], at=M - 4096), bytes(4 * M))
reads("log-nothing", dirty([]))
whole = good().bat_sector(0)
reads("log-two", dirty([(bat_at, emptied)], [(bat_at, whole)]))
reads("log-data", dirty([(good().bat[0] & ~(M - 1), b"\x99" * 4096)]), b"\x99" * 4096 + content[4096:])
none = "the log is in use, but it has no valid entry"
refused_log("other-guid", none, [(bat_at, emptied)], own=b"h" * 16)
refused_log("sequence-0", none, [(bat_at, emptied)], sequence=0)
refused_log("tail-outside", none, [(bat_at, emptied)], tail=8192)
refused_log("tail-max", none, [(bat_at, emptied)], tail=0xffffffff)
for name, at, form, value in (("descriptors-max", 24, "<I", 0xffffffff), ("descriptors-2", 24, "<I", 2),
                              ("descriptors-0", 24, "<I", 0), ("length-0", 8, "<I", 0), ("length-4096", 8, "<I", 4096),
                              ("length-odd", 8, "<I", 8191), ("length-max", 8, "<I", 0xffffffff),
                              ("length-mib", 8, "<I", M), ("descriptor-signature", 64, "<I", 7),
                              ("descriptor-sequence", 88, "<Q", 8), ("data-signature", 4096, "<I", 7),
                              ("data-high", 4100, "<I", 1), ("data-low", 8188, "<I", 8)):
    refused_log(name, none, [(bat_at, emptied)], edit=lambda data, at=at, form=form, value=value:
                struct.pack_into(form, data, at, value))
for name, at in (("file-start", 0), ("header", 64 * K), ("header-2", 128 * K), ("below", 188 * K)):
    refused_log("to-" + name, f"the log would write 4096 bytes at offset {at}, which is in the header section",
                [(at, emptied)])
refused_log("to-log", "the log would write 4096 bytes at offset 1048576, which is in the log itself", [(M, emptied)])
refused_log("to-odd", "which is not aligned to 4 KiB", [(bat_at + 512, emptied)])
for name, at in (("end", 1 << 30), ("2-63", 1 << 63), ("wrap", ALL - 4095)):
    refused_log("to-" + name, f"the log would write 4096 bytes at offset {at}, which is behind the end", [(at, emptied)])
refused_log("zero-2-63", "the log would write 9223372036854775808 bytes at offset .* behind the end", [(bat_at, 1 << 63)])
refused_log("zero-max", "the log would write 18446744073709547520 bytes at offset .* behind the end", [(bat_at, ALL - 4095)])
refused_log("zero-over-log", "which is in the log itself", [(192 * K, 4 * M)])
refused_log("flushed", "the file is truncated: its log was written when it had 1073741824 bytes", [(bat_at, emptied)],
            flushed=1 << 30)
refused_log("last-2-62", "LastFileOffset 4611686018427387904", [(bat_at, emptied)], last=1 << 62)
refused_log("last-max", "LastFileOffset 18446744073709551615", [(bat_at, emptied)], last=ALL)
reads("log-grows", dirty([(bat_at, whole)], last=1 << 40))
refused_log("zeros-many", "the log has more than 65536 zero descriptors", *[[(6 * M, 4096)] * 4094] * 17, log_size=4 * M, tail=0)
refused_log("breaks-bat", "BAT entry 0 0x4 has state 4", [(bat_at, struct.pack("<Q", 4).ljust(4096, b"\0"))])

# ---- regions

refused("regions-lost", "neither region table", regions_edit=lambda i, t: t.__setitem__(100, 1))
reads("regions-1-lost", changed(good(), regions_edit=lambda i, t: None if i else t.__setitem__(100, 1)))
for count in (2048, 0xffffffff):
    refused(f"regions-{count}", f"EntryCount {count} of the region table is more than 2047", region_count=count)
refused("regions-0", "there is no BAT region", region_count=0)
refused("regions-1", "there is no metadata region", region_count=1)


def regions(edit):
    image = good()
    edit(image.regions)
    return image


OTHER = "11111111-2222-3333-4444-555555555555"
refused("region-twice", "region {2dc27766.* is there twice", regions(lambda r: r.append([BAT, 32 * M, M, 1])))
refused("region-required", "region {11111111.* is required but not known", regions(lambda r: r.append([OTHER, 7 * M, M, 1])))
reads("region-optional", changed(regions(lambda r: r.append([OTHER, 8 * M, M, 0])), end=9 * M, bat={0: 4 * M | 6, 3: 5 * M | 6}))
reads("region-not-required", regions(lambda r: [x.__setitem__(3, 0) for x in r]))
for name, at, length, why in (
        ("0", 0, M, "overlaps the header"), ("odd", 3 * M + 4096, M, "is not aligned"), ("length-odd", 3 * M, 4096, "is not aligned"),
        ("empty", 3 * M, 0, "is empty"), ("on-log", M, M, "overlaps"), ("on-metadata", 2 * M, M, "overlaps"),
        ("end", 64 * M, M, "ends behind"), ("long", 3 * M, 4095 * M, "ends behind"), ("2-63", 1 << 63, M, "ends behind"),
        ("max", ALL - M + 1, M, "ends behind")):
    def move(r, at=at, length=length):
        r[0][1:3] = [at, length]
        r.reverse()
    refused("bat-region-" + name, f"region {{2dc27766.*}} of {length} bytes at offset {at} {why}", regions(move))
refused("metadata-on-bat", "region {8b7ca206.* overlaps", regions(lambda r: r[1].__setitem__(1, 3 * M)))
refused("metadata-elsewhere", 'the metadata region does not begin with "metadata"',
        changed(regions(lambda r: r[1].__setitem__(1, 7 * M)), end=8 * M))

# ---- metadata

for count in (2048, 65535):
    refused(f"items-{count}", f"EntryCount {count} of the metadata table is more than 2047", item_count=count)
refused("items-0", "metadata item File Parameters is missing", item_count=0)
for i, name in enumerate(("File Parameters", "Virtual Disk Size", "Virtual Disk ID", "Logical Sector Size", "Physical Sector Size")):
    image = good()
    del image.items[i]
    refused(f"item-{i}-missing", f"metadata item {name} is missing", image)
    image = good()
    image.items.append(list(image.items[i]))
    refused(f"item-{i}-twice", f"metadata item {name} is there twice", image)
    image = good()
    image.items[i][1] += b"\0"
    refused(f"item-{i}-long", f"metadata item {name} has {len(image.items[i][1])} bytes instead of", image)
for name, place, why in (("wrap", (0xfffffff8, 16), "ends behind"), ("outside", (M, 8), "ends behind"),
                         ("over-end", (M - 4, 8), "ends behind"), ("table", (64 * K - 4, 8), "begins inside"),
                         ("zero", (0, 8), "begins inside"), ("huge", (64 * K, 0xffffffff), "is longer than 1 MiB"),
                         ("no-length", (64 * K, 0), "has an offset but no length")):
    refused("item-place-" + name, f"metadata item File Parameters of {place[1]} bytes at offset {place[0]} of its region {why}",
            item_places={0: place})
refused("item-empty", "metadata item File Parameters has 0 bytes", item_places={0: (0, 0)})
refused("items-overlap", "two metadata items overlap at offset 65540", item_places={2: (64 * K + 4, 16)})


def item(identity, value, flags):
    image = good()
    image.items.append([identity, value, flags])
    return image


refused("item-required", "metadata item {11111111.* is required but not known", item(OTHER, b"x", 4))
reads("item-optional", item(OTHER, b"x" * 5000, 0))
reads("item-user", item(FILE_PARAMETERS, b"x", 1))
refused("item-user-required", "metadata item {11111111.* is required but not known", item(OTHER, b"x", 5))
image = good()
image.items += [[OTHER, b"", 1]] * 1025
image.item_places = {i: (0, 0) for i in range(5, 1030)}
refused("items-user", "1025 user metadata items are more than 1024", image)


def value(which, content):
    image = good()
    image.items[which][1] = content
    return image


for size in (0, 1, 512 * K, 3 * M, 512 * M, 1 << 31, 0xffffffff):
    refused(f"block-size-{size}", f"BlockSize {size} is not a power of two from 1 MiB to 256 MiB",
            value(0, struct.pack("<II", size, 0)))
for size in (0, 1, 513, 1024, 8192, 1 << 31):
    refused(f"sector-{size}", f"LogicalSectorSize {size} is neither", value(3, struct.pack("<I", size)))
    refused(f"physical-{size}", f"PhysicalSectorSize {size} is neither", value(4, struct.pack("<I", size)))
for size in (1, 4 * M + 1, (64 << 40) + 512, (1 << 63) - 512, ALL):
    refused(f"size-{size}", f"VirtualDiskSize {size} is more than 64 TiB or no multiple", value(1, struct.pack("<Q", size)))
refused("size-4096", f"VirtualDiskSize {4 * M + 512} .* no multiple of 4096",
        changed(value(1, struct.pack("<Q", 4 * M + 512)), items=good(sector=4096).items[:1] + [
            [DISK_SIZE, struct.pack("<Q", 4 * M + 512), 6]] + good(sector=4096).items[2:]))
refused("size-64t", "the BAT region has 1048576 bytes, .* entries are needed", value(1, struct.pack("<Q", 64 << 40)))
reads("size-0", value(1, struct.pack("<Q", 0)), b"")
reads("size-small", value(1, struct.pack("<Q", 512)), content[:512])

# ---- BAT

for name, entry_0, why in (
        ("0", 6, "points into the header section"), ("header", 6, "points into the header section"),
        ("log", M | 6, "points to where a table"), ("metadata", 2 * M | 6, "points to where a table"),
        ("bat", 3 * M | 6, "points to where a table"), ("block", 5 * M | 6, "points to where a table or another block"),
        ("end", 6 * M | 6, "points behind the end"), ("far", 1 << 40 | 6, "points behind the end"),
        ("max", ALL - M + 1 | 6, "points behind the end"), ("state-4", 4 * M | 4, "has state 4"),
        ("partial", 4 * M | 7, "is partially present, but the image has no parent"),
        ("reserved", 4 * M | 1 << 3 | 6, "has reserved bits"), ("reserved-19", 4 * M | 1 << 19 | 6, "has reserved bits")):
    image = good()
    image.bat[0] = entry_0
    order = 3 if name == "block" else 0
    refused("bat-" + name, f"BAT entry {order} 0x[0-9a-f]+ {why}", image)
for state in (1, 2, 3, 5):
    image = good()
    image.bat[0] = 1 << 50 | state
    reads(f"bat-hidden-{state}", image, bytes(M) + content[M:])
short = good()
short.length = 5 * M + 64 * K
refused("bat-short-block", "BAT entry 3 .* points behind the end", short)
short = good()
short.items[1][1] = struct.pack("<Q", 3 * M + 64 * K)
short.length = 5 * M + 64 * K
reads("bat-short-last", short, content[:3 * M + 64 * K])


# ---- parents

def child(pairs=None, item=None, state=7, bitmap=True, flags=2):
    image = Image(4 * M, has_parent=True, seed=1)
    image.items[0][1] = struct.pack("<II", M, flags)
    image.put_block(0, first, state)
    if bitmap:
        image.put_bits(0, [True] * 2048)
    if item is None:
        item = locator(LINK if pairs is None else pairs)
    if item:
        image.items.append([LOCATOR, item, 4])
    return image


base = good()
base.save(os.path.join(directory, "parent.vhdx"))
nobody = good()
nobody.data_write = bytes(16)
nobody.save(os.path.join(directory, "parent-nobody.vhdx"))
LINK = [("parent_linkage", braces(base.data_write)), ("relative_path", ".\\parent.vhdx")]
OTHERS = braces(b"x" * 16)
NOBODY = braces(bytes(16))
reads("child", child())
reads("child-linkage2", child([("parent_linkage", OTHERS), ("parent_linkage2", LINK[0][1].upper()), LINK[1]]))
refused("child-stranger", "its parent has DataWriteGuid {78787878.*}, but .* has {", child([("parent_linkage", OTHERS), LINK[1]]))
refused("child-nobody", "its parent has DataWriteGuid", child(
    [("parent_linkage", OTHERS), ("parent_linkage2", NOBODY), ("relative_path", "parent-nobody.vhdx")]))
refused("child-of-nobody", "its parent has DataWriteGuid {0000", child(
    [("parent_linkage", NOBODY), ("relative_path", "parent-nobody.vhdx")]))
refused("no-locator", "HasParent is set, but there is no Parent Locator", child(item=b""))
refused("locator-type", "Parent Locator type {11111111.*} is not known", child(item=locator(LINK, kind=OTHER)))
refused("locator-short", "the Parent Locator has only 19 bytes", child(item=locator(LINK)[:19]))
for count in (3 + 100, 65535):
    refused(f"locator-count-{count}", f"KeyValueCount {count} of the Parent Locator needs more", child(item=locator(LINK, count=count)))
for name, at, form, number in (("key-0", 20, "<I", 0), ("key-header", 20, "<I", 4), ("key-far", 20, "<I", 1 << 20),
                               ("key-max", 20, "<I", 0xffffffff), ("value-far", 24, "<I", 1 << 20), ("key-empty", 28, "<H", 0),
                               ("key-long", 28, "<H", 65535), ("value-empty", 30, "<H", 0), ("value-long", 30, "<H", 2000)):
    data = bytearray(locator(LINK))
    struct.pack_into(form, data, at, number)
    refused("locator-" + name, "a text of [0-9]+ bytes at offset [0-9]+ of the Parent Locator is outside", child(item=bytes(data)))

refused("locator-twice", 'the key "parent_linkage" is in the Parent Locator twice', child([LINK[0], LINK[0], LINK[1]]))
refused("locator-no-linkage", "the Parent Locator has no parent_linkage", child([LINK[1]]))
for name, text in (("text", "parent"), ("short", LINK[0][1][:-2] + "}"), ("bare", LINK[0][1][1:-1])):
    refused("linkage-" + name, 'parent_linkage ".*" of the Parent Locator is not a GUID', child([("parent_linkage", text), LINK[1]]))
refused("linkage2-text", 'parent_linkage2 "x" of the Parent Locator is not a GUID', child(LINK + [("parent_linkage2", "x")]))
refused("bitmap-missing", "block 0 is partially present, but its sector bitmap \\(BAT entry 4096\\) is not there", child(bitmap=False))
for name, entry_sb, why in (("state", 4 * M | 7, "a state that bitmaps cannot have"), ("block", 4 * M | 6, "points to where a table"),
                            ("end", 1 << 30 | 6, "points behind the end")):
    image = child()
    image.bat[4096] = entry_sb
    refused("bitmap-" + name, f"BAT entry 4096 0x[0-9a-f]+ (has )?{why}", image)
image = child()
image.bat[7] = image.allocate(M) | 6
refused("block-behind", "BAT entry 7 0x[0-9a-f]+ is of a block behind the end of the disk", image)


def plain_case(name, pairs, pattern):
    """What chains refuse, whatever the format."""
    case(name, child(pairs), "open", pattern)


plain_case("locator-surrogate", [("parent_linkage", b"\0\xd8"), LINK[1]], "VHDX: Parent Locator: a name of 2 bytes is not UTF-16")
plain_case("locator-odd", [("parent_linkage", LINK[0][1].encode("utf-16-le") + b"x"), LINK[1]], "VHDX: Parent Locator: a name in UTF-16 has an odd length")
plain_case("nameless", [LINK[0]], "does not name its parent; give it with --parent")
for name, path in (("passwd", "/etc/passwd"), ("drive", "C:\\etc\\passwd"), ("share", "\\\\host\\share\\etc\\passwd"),
                   ("device", "\\\\?\\C:\\dev\\zero"), ("volume", "\\\\?\\Volume{x}\\etc\\passwd"), ("dots", "..\\..\\..\\..\\..\\..\\etc\\passwd"),
                   ("fifo", "canary"), ("proc", "/proc/self/mem"), ("json", 'json:{"driver":"file"}'), ("nbd", "nbd:localhost:1"),
                   ("url", "http://localhost/x"), ("control", "a\nb"), ("self", None), ("dot", "."), ("long", "x" * 250)):
    for key in ("relative_path", "absolute_win32_path", "volume_path"):
        label = f"{name}-{key[:3]}"
        plain_case(label, [LINK[0], (key, path or label + ".vhdx")], "backing file|none of its names|the chain is a loop|names a protocol")
