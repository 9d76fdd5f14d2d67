#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""read-vdi.py OUT TOP [PARENT...]: the content of a chain of VDIs, by the specification and nothing else.

Every structure is checked: entries inside the file and different from each other, the count of blocks, children and
their parents."""
import struct
import sys

FREE, ZERO = 0xffffffff, 0xfffffffe


class Layer:
    def __init__(self, path):
        data = self.data = open(path, "rb").read()
        signature, version, _, self.kind = struct.unpack_from("<IIII", data, 64)
        assert signature == 0xbeda107f and version == 0x10001, path
        table, self.start = struct.unpack_from("<II", data, 340)
        self.size, self.block, self.extra, blocks, allocated = struct.unpack_from("<QIIII", data, 368)
        self.uuid, self.state, self.parent, self.parent_state = (data[at:at + 16] for at in (392, 408, 424, 440))
        self.map = struct.unpack_from(f"<{blocks}I", data, table)
        assert table + 4 * blocks <= self.start
        used = [e for e in self.map if e < ZERO]
        assert len(set(used)) == len(used) and allocated == max(used, default=-1) + 1, f"{path}: {allocated} {used}"
        assert all(self.at(e) + self.block <= len(data) for e in used), f"{path}: behind the end"

    def at(self, entry):
        return self.start + entry * (self.block + self.extra) + self.extra


layers = [Layer(path) for path in sys.argv[2:]]
for child, parent in zip(layers, layers[1:]):
    assert child.kind == 4 and child.parent == parent.uuid and child.size == parent.size, "not parent and child"
    assert child.parent_state == parent.state, "the parent was written to"
assert layers[-1].kind != 4 and layers[-1].parent == bytes(16)
content = bytearray()
step = min(layer.block for layer in layers)
for offset in range(0, layers[0].size, step):
    piece = bytes(step)
    for layer in layers:
        entry = layer.map[offset // layer.block]
        if entry < ZERO:
            place = layer.at(entry) + offset % layer.block
            piece = layer.data[place:place + step]
        if entry != FREE:
            break
    content += piece
with open(sys.argv[1], "wb") as out:
    out.write(content[:layers[0].size])
