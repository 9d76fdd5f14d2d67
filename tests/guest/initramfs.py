#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""initramfs.py OUT INIT MODULE...: a cpio archive ("newc") with /init, /dev/console and /modules.

The modules are numbered in the order in which the guest has to load them.  The kernel gives /init no
standard output unless the archive has /dev/console.
"""
import os
import stat
import sys

CONSOLE = (5, 1)


def entry(number, name, mode, data=b"", device=(0, 0)):
    name = name.encode() + b"\0"
    fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0]
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main():
    out, init, modules = sys.argv[1], sys.argv[2], sys.argv[3:]
    members = [
        ("dev", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", CONSOLE),
        ("modules", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("init", stat.S_IFREG | 0o755, read(init), (0, 0)),
    ]
    for i, module in enumerate(modules):
        name = f"modules/{i:02d}-{os.path.basename(module)}"
        members.append((name, stat.S_IFREG | 0o644, read(module), (0, 0)))
    with open(out, "wb") as file:
        for number, (name, mode, data, device) in enumerate(members):
            file.write(entry(number, name, mode, data, device))
        file.write(entry(0, "TRAILER!!!", 0))


main()
