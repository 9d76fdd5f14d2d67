#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-qcow2.py KIND PATH VIRTUAL-SIZE AMOUNT [SEED]: writes qcow2 images directly.

  mixed        AMOUNT bytes of the disk are covered by a mixture of noise, text, zeros and holes
               (about 60 % is data), the rest is one hole at the end
  scattered    AMOUNT bytes of noise in pieces of 1 MiB, evenly over the whole disk
  spread       AMOUNT fragments of one cluster, evenly over the whole disk
  alternating  AMOUNT fragments: every other cluster from the start of the disk

The fragments of the last two lie in shuffled order in the file and are sparse there: they cost
metadata, not space.  Version 3, 64 KiB clusters, 16-bit refcounts, everything with refcount 1: the
images are clean for qemu-img check.  The same arguments give the same bytes.
"""
import os
import random
import struct
import sys

CLUSTER = 64 * 1024
L2_ENTRIES = CLUSTER // 8
COPIED = 1 << 63
MIB = 1024 * 1024


class Image:
    """Allocates clusters in order: header, L1, then L2 tables and data as they come, refcounts last."""

    def __init__(self, path, size):
        self.file = open(path, "wb")
        self.size = size
        self.l1 = [0] * -(-size // (CLUSTER * L2_ENTRIES))
        self.l1_offset = CLUSTER
        self.next = 1 + -(-len(self.l1) * 8 // CLUSTER)
        self.table_index = -1
        self.table = None

    def allocate(self, clusters):
        first = self.next
        self.next += clusters
        return first * CLUSTER

    def table_for(self, cluster):
        """The L2 table of a guest cluster; guest clusters come in ascending order."""
        index = cluster // L2_ENTRIES
        if index != self.table_index:
            self.write_table()
            self.table_index = index
            self.table = bytearray(CLUSTER)
            self.l1[index] = self.allocate(1) | COPIED
        return self.table

    def write_table(self):
        if self.table is not None:
            self.file.seek(self.l1[self.table_index] & ~COPIED)
            self.file.write(self.table)

    def map(self, cluster, host):
        struct.pack_into(">Q", self.table_for(cluster), cluster % L2_ENTRIES * 8, host | COPIED)

    def write(self, offset, data):
        """`data` at a guest offset; both multiples of the cluster size."""
        first = offset // CLUSTER
        for i in range(len(data) // CLUSTER):
            self.table_for(first + i)
            host = self.allocate(1)
            self.map(first + i, host)
            if i == 0 or host != run_end:
                self.file.seek(host)
            self.file.write(data[i * CLUSTER:(i + 1) * CLUSTER])
            run_end = host + CLUSTER

    def close(self):
        self.write_table()
        self.file.seek(self.l1_offset)
        self.file.write(struct.pack(f">{len(self.l1)}Q", *self.l1))
        table_offset, table_clusters = self.write_refcounts()
        header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, self.size, 0, len(self.l1),
                             self.l1_offset, table_offset, table_clusters, 0, 0, 0, 0, 0, 4, 104)
        self.file.seek(0)
        self.file.write(header + bytes(8))
        os.ftruncate(self.file.fileno(), self.next * CLUSTER)
        os.fsync(self.file.fileno())
        self.file.close()

    def write_refcounts(self):
        per_block = CLUSTER // 2
        blocks, table_clusters = 0, 1
        while blocks * per_block < self.next + blocks + table_clusters:
            blocks += 1
            table_clusters = -(-blocks * 8 // CLUSTER)
        table_offset = self.allocate(table_clusters)
        block_offset = self.allocate(blocks)
        used = self.next
        self.file.seek(table_offset)
        self.file.write(struct.pack(f">{blocks}Q", *(block_offset + i * CLUSTER for i in range(blocks))))
        self.file.seek(block_offset)
        for i in range(blocks):
            ones = max(0, min(per_block, used - i * per_block))
            self.file.write(b"\0\1" * ones + bytes(CLUSTER - 2 * ones))
        return table_offset, table_clusters


class Noise:
    """Incompressible data at memory speed: slices of a pool at random places."""

    def __init__(self, rng):
        self.rng = rng
        self.pool = memoryview(rng.randbytes(32 * MIB))

    def take(self, length):
        start = self.rng.randrange(len(self.pool) - length)
        return self.pool[start:start + length]


def text(rng, length):
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(64)]
    line = b" ".join(rng.choices(words, k=2048)) + b"\n"
    return (line * (length // len(line) + 1))[:length]


def mixed(image, covered, rng):
    noise, offset = Noise(rng), 0
    while offset < covered:
        length = min(CLUSTER << rng.randint(0, 7), covered - offset)
        kind = rng.choices(["noise", "text", "zeros", "hole"], weights=[40, 14, 6, 40])[0]
        if kind == "noise":
            image.write(offset, noise.take(length))
        elif kind == "text":
            image.write(offset, text(rng, length))
        elif kind == "zeros":
            image.write(offset, bytes(length))
        offset += length


def scattered(image, amount, rng):
    noise, pieces = Noise(rng), amount // MIB
    for i in range(pieces):
        image.write(image.size // pieces * i // MIB * MIB, noise.take(MIB))


def fragments(image, count, step):
    # Clusters are taken in order and given out shuffled among the fragments of one L2 table.
    i = 0
    while i < count:
        index = i * step // L2_ENTRIES
        group = []
        while i < count and i * step // L2_ENTRIES == index:
            group.append(i * step)
            i += 1
        image.table_for(group[0])
        base = image.allocate(len(group))
        for n, cluster in enumerate(group):
            image.map(cluster, base + (n * 7 + 3) % len(group) * CLUSTER if len(group) % 7 else
                      base + (len(group) - 1 - n) * CLUSTER)


def number(text_value):
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    return int(text_value[:-1]) * units[text_value[-1]] if text_value[-1] in units else int(text_value)


def main():
    kind, path, size, amount = sys.argv[1], sys.argv[2], number(sys.argv[3]), number(sys.argv[4])
    rng = random.Random(sys.argv[5] if len(sys.argv) > 5 else "1")
    image = Image(path, size)
    if kind == "mixed":
        mixed(image, amount, rng)
    elif kind == "scattered":
        scattered(image, amount, rng)
    elif kind == "spread":
        fragments(image, amount, size // CLUSTER // amount)
    elif kind == "alternating":
        fragments(image, amount, 2)
    else:
        sys.exit(f"make-qcow2.py: unknown kind {kind}")
    image.close()


main()
