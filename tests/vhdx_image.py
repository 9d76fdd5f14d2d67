# SPDX-License-Identifier: LGPL-2.1-or-later
"""VHDX images from the specification, right or wrong in whatever field a test chooses; little endian."""
import functools
import os
import random
import struct
import uuid

K, M = 1 << 10, 1 << 20
BAT = "2DC27766-F623-4200-9D64-115E9BFD4A08"
METADATA = "8B7CA206-4790-4B9A-B8FE-575F050F886E"
FILE_PARAMETERS = "CAA16737-FA36-4D43-B3B6-33F0AA44E76B"
DISK_SIZE = "2FA54224-CD1B-4876-B211-5DBED83BF4B8"
DISK_ID = "BECA12AB-B2E6-4523-93EF-C309E000C746"
LOGICAL = "8141BF1D-A96F-4709-BA47-F233A8FAAB5F"
PHYSICAL = "CDA348C7-445D-4471-9CC9-E9885251C556"
LOCATOR = "A8D35F2D-B30B-454D-ABF7-D3D84834AB0C"
LOCATOR_TYPE = "B04AEFB7-D19E-4A81-B789-25B8E9445913"
NO_GUID = bytes(16)

_table = []
for _i in range(256):
    for _ in range(8):
        _i = _i >> 1 ^ (0x82F63B78 if _i & 1 else 0)
    _table.append(_i)


def crc32c(data):
    return _crc32c(bytes(data))


@functools.lru_cache(64)  # most images of a test have the same tables
def _crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ _table[(crc ^ byte) & 255]
    return crc ^ 0xffffffff


def guid(text):
    return uuid.UUID(text).bytes_le


def braces(value):
    return "{" + str(uuid.UUID(bytes_le=value)) + "}"


def seal(data):
    """The checksum of the whole, at offset 4."""
    struct.pack_into("<I", data, 4, 0)
    struct.pack_into("<I", data, 4, crc32c(data))
    return data


def write_sparse(path, pieces, length):
    """(offset, bytes), of which zeros stay holes."""
    with open(path, "wb") as out:
        out.truncate(length)
        for at, data in pieces:
            for i in range(0, len(data), 4 * K):
                part = data[i:i + 4 * K]
                if any(part):
                    out.seek(at + i)
                    out.write(part)


def locator(pairs, kind=LOCATOR_TYPE, count=None):
    """`pairs` are keys and values; a value may be bytes already."""
    entries, texts, at = b"", b"", 20 + 12 * len(pairs)
    for key, value in pairs:
        key = key.encode("utf-16-le") if isinstance(key, str) else key
        value = value.encode("utf-16-le") if isinstance(value, str) else value
        entries += struct.pack("<IIHH", at + len(texts), at + len(texts) + len(key), len(key), len(value))
        texts += key + value
    return guid(kind) + struct.pack("<HH", 0, len(pairs) if count is None else count) + entries + texts


def entry(log_guid, sequence, at, changes, tail=None, flushed=0, last=0, count=None):
    """A log entry of (offset, 4096 bytes) and (offset, length of zeros)."""
    descriptors, data = b"", b""
    for offset, what in changes:
        if isinstance(what, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, what, offset, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", what[-4:], what[:8], offset, sequence)
            data += struct.pack("<4sI", b"data", sequence >> 32) + what[8:-4] + struct.pack("<I", sequence & 0xffffffff)
    sectors = (len(changes) + 2 + 127) // 128
    length = sectors * 4096 + len(data)
    head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, length, at if tail is None else tail, sequence,
                       len(changes) if count is None else count, 0, log_guid, flushed, last)
    return seal(bytearray((head + descriptors).ljust(sectors * 4096, b"\0") + data))


class Image:
    """Header section, log, metadata, BAT and blocks, in this order and without gaps; all may be changed before save()."""

    def __init__(self, size, block=M, sector=512, has_parent=False, log_size=M, seed=0):
        ids = random.Random(seed)
        self.size, self.block, self.sector, self.has_parent = size, block, sector, has_parent
        self.ratio = (1 << 23) * sector // block
        self.file_write, self.data_write, self.disk_id = (ids.randbytes(16) for _ in range(3))
        self.log_guid, self.sequence, self.version, self.log_version = NO_GUID, 7, 1, 0
        self.log_at, self.log_size = M, log_size
        self.metadata_at = M + log_size
        self.bat_at = self.metadata_at + M
        blocks = (size + block - 1) // block
        chunks = (blocks + self.ratio - 1) // self.ratio
        self.entries = chunks * (self.ratio + 1)
        self.bat_size = max((self.entries * 8 + M - 1) // M, 1) * M
        self.end = self.bat_at + self.bat_size
        self.regions = [[BAT, self.bat_at, self.bat_size, 1], [METADATA, self.metadata_at, M, 1]]
        self.region_count, self.item_count = None, None
        self.items = [[FILE_PARAMETERS, struct.pack("<II", block, 2 if has_parent else 0), 4],
                      [DISK_SIZE, struct.pack("<Q", size), 6], [DISK_ID, self.disk_id, 6],
                      [LOGICAL, struct.pack("<I", sector), 6], [PHYSICAL, struct.pack("<I", 4096), 6]]
        self.item_places = {}  # index -> (offset, length)
        self.bat = {}          # index -> entry
        self.parts = {}        # offset -> bytes, written last
        self.header_edit = lambda which, header: None
        self.regions_edit = lambda which, table: None
        self.length = None

    # ---- the map

    def index(self, block):
        return block + block // self.ratio

    def bitmap_index(self, chunk):
        return chunk * (self.ratio + 1) + self.ratio

    def allocate(self, length):
        at = self.end
        self.end += length
        return at

    def put_block(self, block, data, state=6):
        at = self.allocate(self.block)
        self.parts[at] = data
        self.bat[self.index(block)] = at | state
        return at

    def put_bits(self, block, bits):
        """`bits`: one bool per sector of the block."""
        index = self.bitmap_index(block // self.ratio)
        if index not in self.bat:
            self.bat[index] = self.allocate(M) | 6
            self.parts[self.bat[index] - 6] = bytearray(M)
        bitmap, first = self.parts[self.bat[index] - 6], block % self.ratio * (self.block // self.sector)
        for i, bit in enumerate(bits):
            if bit:
                bitmap[(first + i) // 8] |= 1 << (first + i) % 8
            else:
                bitmap[(first + i) // 8] &= ~(1 << (first + i) % 8)

    def parent(self, pairs):
        self.items.append([LOCATOR, locator(pairs), 4])
        return self

    # ---- the file

    def header(self, which):
        data = bytearray(struct.pack("<4sIQ16s16s16sHHIQ", b"head", 0, self.sequence + which, self.file_write, self.data_write,
                                     self.log_guid, self.log_version, self.version, self.log_size, self.log_at).ljust(4096, b"\0"))
        self.header_edit(which, data)
        return seal(data)

    def region_table(self, which):
        data = bytearray(struct.pack("<4sIII", b"regi", 0, len(self.regions) if self.region_count is None
                                     else self.region_count, 0))
        for name, at, length, required in self.regions:
            data += guid(name) + struct.pack("<QII", at, length, required)
        data = seal(data.ljust(64 * K, b"\0")[:64 * K])
        self.regions_edit(which, data)
        return data

    def metadata(self):
        table = b"metadata" + struct.pack("<HH20x", 0, len(self.items) if self.item_count is None else self.item_count)
        data, at = bytearray(M), 64 * K
        for i, (name, content, flags) in enumerate(self.items):
            offset, length = self.item_places.get(i, (at, len(content)))
            table += guid(name) + struct.pack("<IIII", offset, length, flags, 0)
            data[at:at + len(content)] = content
            at += len(content)
        data[:len(table)] = table
        return data[:M]

    def bat_sector(self, number):
        return b"".join(struct.pack("<Q", self.bat.get(number * 512 + i, 0)) for i in range(512))

    def pieces(self):
        """(offset, bytes) of all that is not zero."""
        yield 0, b"vhdxfile" + "test".encode("utf-16-le")
        for which in range(2):
            yield 64 * K * (which + 1), self.header(which)
            yield 192 * K + 64 * K * which, self.region_table(which)
        yield self.metadata_at, self.metadata()
        for number in sorted({index // 512 for index in self.bat}):
            yield self.bat_at + number * 4096, self.bat_sector(number)
        yield from self.parts.items()

    def save_compact(self, path):
        """As tests/fuzz/vhdx.c reads it."""
        with open(path, "wb") as out:
            out.write(bytes([min((self.end if self.length is None else self.length) // M, 255) - 1 & 255]))
            for at, data in self.pieces():
                for i in range(0, len(data), 4 * K):
                    part = bytes(data[i:i + 4 * K]).rstrip(b"\0")
                    if part and (at + i) >> 28 == 0:
                        out.write(struct.pack("<HH", (at + i) >> 12, len(part)) + part)

    def save(self, path):
        write_sparse(path, self.pieces(), self.end)
        if self.length is not None:
            os.truncate(path, self.length)
