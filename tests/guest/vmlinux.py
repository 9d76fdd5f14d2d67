#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmlinux.py BZIMAGE OUT: the kernel that is packed in a bzImage, as QEMU starts it, too (the PVH entry).

A third of the processor time that a guest without hardware virtualisation needs to boot goes into unpacking it.
Where the parts lie: Documentation/arch/x86/boot.rst of Linux, "setup_sects", "payload_offset" and "payload_length".
What is unpacked has its size behind it, in 4 bytes, which gzip writes itself.
"""
import gzip
import lzma
import struct
import subprocess
import sys

GZIP, XZ, LZ4, ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"
PVH_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY


def unpack(payload):
    if payload.startswith(GZIP):
        return gzip.decompress(payload)
    packed = payload[:-4]
    if packed.startswith(XZ):
        return lzma.decompress(packed)
    for magic, tool in (LZ4, "lz4"), (ZSTD, "zstd"):
        if packed.startswith(magic):
            return subprocess.run([tool, "-dcq"], input=packed, stdout=subprocess.PIPE, check=True).stdout
    sys.exit("packed in a way that is not known here")


def is_started_by_qemu(kernel):
    return any(struct.pack("<III4s", 4, size, PVH_ENTRY, b"Xen") in kernel for size in (4, 8))


def main(image, out):
    with open(image, "rb") as file:
        packed = file.read()
    sectors, (offset, length) = packed[0x1F1], struct.unpack_from("<II", packed, 0x248)
    begin = (sectors + 1) * 512 + offset
    payload = packed[begin:begin + length]
    kernel = unpack(payload)
    if len(kernel) != struct.unpack("<I", payload[-4:])[0]:
        sys.exit("the kernel was not unpacked whole")
    if not is_started_by_qemu(kernel):
        sys.exit("this kernel has no entry for QEMU")
    with open(out, "wb") as file:
        file.write(kernel)


main(*sys.argv[1:])
