#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-data.py KIND PATH SIZE SEED: deterministic data for tests and measurements.

KIND noise: nothing compresses it.  KIND mixed: noise, text, zeros and holes in turns.
The same arguments give the same bytes on every machine (random.Random is specified).
"""
import os
import random
import sys

KIB, MIB = 1024, 1024 * 1024


def text(rng, length):
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(64)]
    line = b" ".join(rng.choices(words, k=512)) + b"\n"
    return (line * (length // len(line) + 1))[:length]


def pieces(kind, rng, size):
    """Yields (offset, bytes); what is not yielded is a hole."""
    offset = 0
    while offset < size:
        if kind == "noise":
            length, what = MIB, "noise"
        else:
            length = 4 * KIB << rng.randint(0, 8)
            what = rng.choices(["noise", "text", "zeros", "hole"], weights=[50, 25, 10, 15])[0]
        length = min(length, size - offset)
        if what == "noise":
            yield offset, rng.randbytes(length)
        elif what == "text":
            yield offset, text(rng, length)
        elif what == "zeros":
            yield offset, bytes(length)
        offset += length


def main():
    kind, path, size, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if kind not in ("noise", "mixed"):
        sys.exit(f"make-data.py: unknown kind {kind}")
    with open(path, "wb") as out:
        for offset, data in pieces(kind, random.Random(seed), size):
            out.seek(offset)
            out.write(data)
        os.ftruncate(out.fileno(), size)


main()
