# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of tools/bench that compares the formats: from each into a raw file and back, beside qcow2 of the
same data here, and beside qemu-img convert the same way.

Both read the image that blockmig made: images of QEMU are laid out otherwise, and the question is who reads
the same bytes faster.  What each writes is of its own making.
"""
import os
import statistics

# What blockmig and qemu-img call it, and options that make QEMU write the same kind of image: with the size
# that it was given, and not the next one that a geometry can say.
FORMATS = (
    ("vhdx", ["-O", "vhdx"], ["vhdx"]),
    ("vhd", ["-O", "vhd"], ["vpc", "-o", "force_size=on"]),
    ("vmdk", ["-O", "vmdk"], ["vmdk"]),
    ("vdi", ["-O", "vdi"], ["vdi"]),
)
STREAM = (["-O", "vmdk", "-o", "subformat=streamOptimized"], ["vmdk", "-o", "subformat=streamOptimized"])
AS_FAST = 1 / 0.9  # 0.9 of the speed is so much of the time


class Formats:
    def __init__(self, bench, quietly):
        self.bench, self.quietly = bench, quietly

    def copy(self, source, target, *options):
        self.bench.remove(target)
        return self.bench.timed(self.bench.tool, "copy", "-q", "--verify=none", *options, self.bench.path(source),
                                self.bench.path(target))[0]

    def convert(self, source, source_format, target, options):
        self.bench.remove(target)
        return self.bench.timed("qemu-img", "convert", "-T", "none", "-t", "none", "-f", source_format, "-O", *options,
                                self.bench.path(source), self.bench.path(target))[0]

    def paired(self, contenders):
        """name -> seconds of each round; who begins changes from round to round."""
        names, times = list(contenders), {name: [] for name in contenders}
        for number in range(self.bench.options.rounds):
            start = number % len(names)
            for name in names[start:] + names[:start]:
                times[name].append(contenders[name]())
        return times

    def compare(self, what, ours, peer, limit):
        self.bench.row(what, statistics.median(ours), statistics.median(peer),
                       statistics.median(a / b for a, b in zip(ours, peer)), limit)

    def one(self, name, ours, qemu, beside, limit):
        """`beside`: options of the qcow2 image that it is measured against."""
        for image, options in (("image", ours), ("qcow2", beside)):
            self.copy("raw", image, *options)
        times = self.paired({
            "read": lambda: self.copy("image", "target", "-O", "raw"),
            "read qcow2": lambda: self.copy("qcow2", "target", "-O", "raw"),
            "read qemu": lambda: self.convert("image", qemu[0], "target", ["raw"]),
            "write": lambda: self.copy("raw", "target", *ours),
            "write qcow2": lambda: self.copy("raw", "target", *beside),
            "write qemu": lambda: self.convert("raw", "raw", "target", qemu),
        })
        for way, words in (("read", f"{name} -> raw"), ("write", f"raw -> {name}")):
            self.compare(f"{words} / {' '.join(beside[1:])}", times[way], times[f"{way} qcow2"], limit)
            self.compare(f"{words} / qemu-img convert", times[way], times[f"{way} qemu"], 1)
        self.bench.remove("image", "qcow2", "target")

    def raw(self, size):
        source = self.bench.make("mixed", "source", str(size), str(size))
        self.copy("source", "raw", "-O", "raw")
        os.unlink(source)

    def run(self, size):
        print("\nformats, --verify=none, beside qcow2 here and beside qemu-img of the same image (read) or data (write)")
        self.raw(size)
        for name, ours, qemu in FORMATS:
            self.one(name, ours, qemu, ["-O", "qcow2"], AS_FAST)
        self.raw(size // 4)  # compression is for the processors, and takes its time
        self.one("streamOptimized", *STREAM, ["-O", "qcow2", "--compressed"], None)
        self.bench.remove("raw")
