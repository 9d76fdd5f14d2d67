# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copies to a unit of an iSCSI target on this host: a part of tools/bench."""

import os
import socket
import statistics
import subprocess
import time

NAME = "iqn.2026-11.example.blockmig:bench"


class Target:
    """A tgtd of our own, with one thin unit for each of `files`."""

    def __init__(self, bench, quietly, files):
        self.quietly = quietly
        self.environment = dict(os.environ, TGT_IPC_SOCKET=bench.path("tgtd"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.portal = "127.0.0.1:%d" % probe.getsockname()[1]
        self.process = subprocess.Popen(["tgtd", "-f", "-C", "1", "--iscsi", "portal=" + self.portal],
                                        env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            self.fill(files)
        except BaseException:
            self.end()
            raise

    def admin(self, *arguments):
        self.quietly("tgtadm", "-C", "1", "--lld", "iscsi", *arguments, env=self.environment)

    def fill(self, files):
        for _ in range(100):
            if subprocess.run(["tgtadm", "-C", "1", "--lld", "iscsi", "--op", "show", "--mode", "sys"],
                              env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              check=False).returncode == 0:
                break
            time.sleep(0.1)
        self.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", NAME)
        self.admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        for lun, file in enumerate(files, 1):
            self.admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun), "-b", file)
            self.admin("--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", str(lun),
                       "--params", "thin_provisioning=1")

    def unit(self, lun):
        return f"iscsi://{self.portal}/{NAME}/{lun}"

    def end(self):
        self.process.kill()  # it does not end by SIGTERM as long as it has targets
        self.process.wait()


class Iscsi:
    def __init__(self, bench, quietly):
        self.bench, self.quietly = bench, quietly

    def empty(self, name, size):
        path = self.bench.path(name)
        with open(path, "wb") as file:
            file.truncate(size)
        return path

    def run(self, size):
        bench = self.bench
        source = bench.make("mixed", "source", str(size), str(size))
        target = Target(bench, self.quietly, [self.empty("ours", size), self.empty("peer", size)])
        try:
            rounds = self.rounds(source, target)
        finally:
            target.end()
        bench.remove("source", "ours", "peer")
        print("\ncopies to a thin unit of an iSCSI target on this host")
        for what, ours, peer, limit in (("verified copy / qemu-img convert", "copy", "convert", 1 / 1.3),
                                        ("verified copy / qemu-img convert -W -m 16", "copy", "convert-W", None),
                                        ("copy --verify=none / the faster of both", "copy-none", None, None)):
            peers = [r[peer] if peer else min(r["convert"], r["convert-W"]) for r in rounds]
            bench.row(what, statistics.median(r[ours] for r in rounds), statistics.median(peers),
                      statistics.median(r[ours] / p for r, p in zip(rounds, peers)), limit)

    def rounds(self, source, target):
        bench = self.bench

        def copy(verify):
            return bench.timed(bench.tool, "copy", "-q", "--force", "--restart", "-O", "raw", f"--verify={verify}",
                               source, target.unit(1))[0]

        def convert(*extra):
            return bench.timed("qemu-img", "convert", "-n", "-T", "none", "-t", "none", *extra, "-O", "raw",
                               source, target.unit(2))[0]

        results = []
        for _ in range(bench.options.rounds):
            results.append({"copy": copy("full"), "convert": convert(), "copy-none": copy("none"),
                            "convert-W": convert("-W", "-m", "16")})
        return results
