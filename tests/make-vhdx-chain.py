#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""make-vhdx-chain.py DIRECTORY SEED [plain]: writes a random chain of VHDX images, DIRECTORY/0.vhdx the base, and to
DIRECTORY/N.raw what a guest reads through N.vhdx.  Prints the number of images and their sector size.

Every state of a block occurs, every kind of parent_linkage that Windows writes, both sector sizes, and logs with
changes that are not applied: several entries, some of them old, round the end of the log, or torn.  "plain": only what libvhdi 20210425 reads right:
no logs, no second linkages, no zeros that hide a parent, no child without a sector bitmap."""
import os
import random
import sys

from vhdx_image import M, NO_GUID, Image, braces, entry

directory, seed, plain = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
rand = random.Random(seed)
sector = rand.choice((512, 512, 4096))
size = rand.randint(M // sector if plain else 1, 9 * M // sector) * sector
HIDES = (1, 2, 3, 5)


def content(number, length):
    """Noise, told apart by its layer."""
    return rand.randbytes(length - 1) + bytes([number + 1])


def bits(count):
    """Runs of sectors of every length, not all set."""
    out = []
    while len(out) < count:
        out += [rand.random() < 0.5] * rand.randint(1, rand.choice((3, 40, count)))
    return out[:count]


def fill(image, number, block, below):
    """Gives the block a random state; returns what the guest reads then."""
    data = content(number, image.block)
    state = rand.choice((0, 0, 6, 6) + HIDES + ((7, 7, 7, 7) if image.has_parent else ()))
    if plain:
        state = 6 if not image.has_parent else rand.choice((0, 6, 7)) if block else 7
    if state == 0:
        return below
    if state in HIDES:
        image.bat[image.index(block)] = state | (rand.choice((0, 5 * M)) if state in (1, 3) else 0)
        return bytes(image.block)
    if state == 6:
        image.put_block(block, data)
        if image.has_parent and rand.random() < 0.3:  # of no meaning for a whole block
            image.put_bits(block, bits(image.block // sector))
        return data
    set_bits = bits(image.block // sector)
    if plain:
        set_bits[:2] = True, False
    image.put_block(block, data, 7)
    image.put_bits(block, set_bits)
    out = bytearray(below)
    for i, bit in enumerate(set_bits):
        if bit:
            out[i * sector:(i + 1) * sector] = data[i * sector:(i + 1) * sector]
    return bytes(out)


def metadata_sectors(image):
    """Those that go through the log: offset -> 4096 bytes."""
    out = {}
    for number in {index // 512 for index in image.bat}:
        out[image.bat_at + number * 4096] = image.bat_sector(number)
    for index, value in image.bat.items():
        if index % (image.ratio + 1) == image.ratio:
            bitmap = image.parts[value - 6]
            for at in range(0, M, 4096):
                if any(bitmap[at:at + 4096]):
                    out[value - 6 + at] = bytes(bitmap[at:at + 4096])
    return out


def log_changes(image):
    """Takes sectors out of the file and writes them to the log instead; the file has nonsense there."""
    sectors = list(metadata_sectors(image).items())
    rand.shuffle(sectors)
    sectors = sectors[:rand.randint(1, 40)]
    image.log_guid = rand.randbytes(16)
    log, at, sequence = bytearray(image.log_size), rand.randrange(image.log_size // 4096) * 4096, rand.randint(1, 1 << 40)
    tail = at

    def write(data):
        for i in range(0, len(data), 4096):
            where = (at + i) % image.log_size
            log[where:where + 4096] = data[i:i + 4096]
        return (at + len(data)) % image.log_size

    def one(changes, guid=image.log_guid, last_size=image.end):
        return entry(guid, sequence, at, changes, tail, rand.choice((0, M)), last_size)

    for _ in range(rand.randint(0, 2)):  # applied long ago, before the tail: must not be applied again
        at = write(one([(offset, rand.randbytes(4096)) for offset, _ in sectors[:3]]))
        tail, sequence = at, sequence + 1
    while True:
        changes, sectors = sectors[:rand.randint(1, 8)], sectors[8:]
        if rand.random() < 0.3 and changes:  # first zeros, then what counts
            at = write(one([(changes[0][0], 4096)]))
            sequence += 1
        at = write(one(changes))
        sequence += 1
        for offset, _ in changes:
            image.parts[("log", offset)] = rand.choice((bytes(4096), None))
        if not sectors:
            break
    torn = one([(image.bat_at, rand.randbytes(4096))])
    kind = rand.choice(("torn", "other", "skip", "none"))
    if kind == "torn":
        torn[-100] ^= 1
        write(torn)
    elif kind == "other":
        write(one([(image.bat_at, rand.randbytes(4096))], guid=rand.randbytes(16)))
    elif kind == "skip":
        sequence += 1
        write(one([(image.bat_at, rand.randbytes(4096))], last_size=0)[:4096])
    image.parts[image.log_at] = log


def save(image, path):
    """As Image.save(), but with what lies in the log not in its place."""
    hidden = {key[1]: data for key, data in image.parts.items() if isinstance(key, tuple)}
    image.parts = {key: data for key, data in image.parts.items() if not isinstance(key, tuple)}
    image.save(path)
    with open(path, "r+b") as out:
        for at, data in hidden.items():
            if data is not None:
                out.seek(at)
                out.write(data)


def link(image, below, number):
    """As Hyper-V writes it, in one of several ways."""
    other, zero = braces(rand.randbytes(16)), braces(NO_GUID)
    mine = braces(below.data_write)
    if plain:
        image.parent([("parent_linkage", mine), ("relative_path", f".\\{number - 1}.vhdx")])
        return
    mine = mine.upper() if rand.random() < 0.5 else mine
    linkage = [("parent_linkage", mine)]
    linkage = rand.choice((linkage, linkage + [("parent_linkage2", zero)], [("parent_linkage", other), ("parent_linkage2", mine)]))
    name = f"{number - 1}.vhdx"
    paths = [("relative_path", ".\\" + name), ("absolute_win32_path", "C:\\Users\\x\\" + name),
             ("volume_path", "\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\" + name)]
    image.parent(linkage + rand.sample(paths, rand.randint(1, 3)))


shown, below = bytes(16 * M), None
depth = rand.randint(1, 4)
for number in range(depth):
    image = Image(size, block=M << rand.randint(0, 2), sector=sector, has_parent=below is not None,
                  log_size=M << rand.choice((0, 0, 1)), seed=rand.random())
    shown = b"".join(fill(image, number, i, shown[i * image.block:(i + 1) * image.block].ljust(image.block, b"\0"))
                     for i in range((size + image.block - 1) // image.block))
    shown = shown[:size]
    if below:
        link(image, below, number)
    if image.bat and not plain and rand.random() < 0.5:
        log_changes(image)
    save(image, os.path.join(directory, f"{number}.vhdx"))
    with open(os.path.join(directory, f"{number}.raw"), "wb") as out:
        out.write(shown)
    below = image
print(depth, sector)
