#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""read-libvhdi.py OUT TOP [PARENT...]: what libvhdi reads through a chain of VHD or VHDX images. Exit 77: no libvhdi."""
import sys

try:
    import pyvhdi
except ImportError:
    sys.exit(77)
files = []
for path in reversed(sys.argv[2:]):
    file = pyvhdi.file()
    file.open(path)
    if files:
        file.set_parent(files[-1])
    files.append(file)
left = files[-1].get_media_size()
with open(sys.argv[1], "wb") as out:
    while left > 0:
        data = files[-1].read(min(left, 1 << 20))
        if not data:
            sys.exit(f"ends {left} bytes early")
        out.write(data)
        left -= len(data)
