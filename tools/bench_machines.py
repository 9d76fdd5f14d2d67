# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of tools/bench that brings a running machine of libvirt to another host, in turns by blockmig and by
libvirt's own migration with a synchronous copy of the disk, which is neither encrypted nor verified; and by quick, over a
link of 1 Gbit/s too.  bench-machines.sh does it.
"""
import json
import os
import statistics
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Machines:
    def __init__(self, bench):
        self.bench = bench

    def measure(self):
        """Of each kind the measurements, in their order."""
        tool, results = os.path.abspath(self.bench.tool), self.bench.path("machines")
        environment = dict(os.environ, builddir=os.path.dirname(os.path.dirname(tool)), srcdir=TOP, BLOCKMIG=tool,
                           TMPDIR=os.path.dirname(results), BLOCKMIG_REFERENCE="1")
        done = subprocess.run([os.path.join(TOP, "tools/bench-machines.sh"), results, str(2 * self.bench.options.rounds)],
                              env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, check=False)
        if done.returncode:
            sys.exit(f"bench: machines:\n{done.stdout}")
        found = {}
        with open(results, encoding="ascii") as lines:
            for line in map(json.loads, lines):
                found.setdefault(line["what"], []).append(line)
                if self.bench.options.verbose:
                    print(f"  {line}", flush=True)
        return found

    def beside_libvirt(self, ours, theirs):
        print(f"\n{'live migration with its disk, 1 GiB, 64 MiB of it in use':<58} {'ours':>8} {'libvirt':>8} {'ratio':>6}")
        for what, field in (("pause, ms", "pause_ms"), ("longest write of the guest, ms", "longest_ms"),
                            ("whole time, s", "seconds")):
            self.bench.row(what, statistics.median(r[field] for r in ours), statistics.median(r[field] for r in theirs),
                           statistics.median(a[field] / b[field] for a, b in zip(ours, theirs)), None)
        for what, field, limit in (("live: median pause", "pause_ms", 120), ("live: longest pause", "pause_ms", None),
                                   ("live: median of the longest writes", "longest_ms", 200)):
            values = [r[field] for r in ours]
            self.bench.limit_row(what, max(values) if "longest pause" in what else statistics.median(values), "ms", limit)

    def run(self):
        print("\nmachines of libvirt go to another host (a minute or two)", flush=True)
        found = self.measure()
        self.beside_libvirt(found["live"], found["libvirt"])
        self.bench.limit_row("quick: median pause", statistics.median(r["pause_ms"] for r in found["quick"]), "ms", None)
        for kind in ("off", "auto"):
            rounds = found[f"quick-{kind}"]
            ideal = statistics.median(r["ideal_ms"] for r in rounds)
            self.bench.limit_row(f"quick, 1 Gbit/s, --compress={kind}: pause (state / link: {ideal:.0f} ms)",
                                 statistics.median(r["pause_ms"] for r in rounds), "ms", ideal + 300)
