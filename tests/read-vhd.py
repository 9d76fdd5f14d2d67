#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""read-vhd.py OUT TOP [PARENT...]: the content of a chain of VHDs, by the specification and nothing else.

Every structure is checked: cookies, checksums, both footers alike, blocks inside the file and apart from each other,
children and their parents."""
import struct
import sys


def checksum(data, at):
    return ~sum(b for i, b in enumerate(data) if not at <= i < at + 4) & 0xffffffff


class Layer:
    def __init__(self, path):
        data = self.data = open(path, "rb").read()
        footer = data[-512:]
        assert footer[:8] == b"conectix", f"{path}: no footer"
        assert struct.unpack_from(">I", footer, 64)[0] == checksum(footer, 64), f"{path}: footer checksum"
        self.uuid = footer[68:84]
        offset, self.size, self.type = struct.unpack_from(">Q", footer, 16)[0], \
            struct.unpack_from(">Q", footer, 48)[0], struct.unpack_from(">I", footer, 60)[0]
        if self.type == 2:
            assert offset == (1 << 64) - 1 and len(data) == self.size + 512, f"{path}: fixed"
            return
        assert data[:512] == footer, f"{path}: the copy of the footer differs"
        header = data[offset:offset + 1024]
        assert header[:8] == b"cxsparse", f"{path}: no header"
        assert struct.unpack_from(">I", header, 36)[0] == checksum(header, 36), f"{path}: header checksum"
        table, _, self.entries, self.block = struct.unpack_from(">QIII", header, 16)
        self.parent = header[40:56]
        self.bitmap = (self.block // 512 + 7) // 8 + 511 & ~511
        self.bat = struct.unpack_from(f">{self.entries}I", data, table)
        used = sorted(e * 512 for e in self.bat if e != 0xffffffff)
        for start, following in zip(used, used[1:] + [len(data) - 512]):
            assert start >= table + self.entries * 4 and start + self.bitmap + self.block <= following, f"{path}: {start}"

    def sector(self, number):
        """512 bytes, or None: not in this file."""
        at = number * 512
        if self.type == 2:
            return self.data[at:at + 512]
        entry = self.bat[at // self.block]
        inside = at % self.block // 512
        if entry == 0xffffffff or not self.data[entry * 512 + inside // 8] & 0x80 >> inside % 8:
            # QEMU takes the bytes of a dynamic disk, whatever the bit says: they have to be zeros, too.
            if entry != 0xffffffff and self.type == 3:
                start = entry * 512 + self.bitmap + inside * 512
                assert not any(self.data[start:start + 512]), f"sector {number}: hidden bytes"
            return None
        start = entry * 512 + self.bitmap + inside * 512
        return self.data[start:start + 512]


layers = [Layer(path) for path in sys.argv[2:]]
for child, parent in zip(layers, layers[1:]):
    assert child.type == 4 and child.parent == parent.uuid and child.size == parent.size, "not parent and child"
assert layers[-1].type != 4
with open(sys.argv[1], "wb") as out:
    for number in range(layers[0].size // 512):
        out.write(next((s for s in (layer.sector(number) for layer in layers) if s is not None), bytes(512)))
