# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of tools/bench that copies to servers on this host, in paired rounds with cold caches.

A kind of server is a class with a name, start(target, size), which returns the URI of `target` (a fresh
sparse file) as raw disk, and stop(); SERVERS lists them.  speaks_nbd: nbdcopy can reach it.  Both sides of a comparison get the same server.
"""
import os
import socket
import statistics
import subprocess
import time


class QemuNbd:
    name = "qemu-nbd"
    speaks_nbd = True

    def __init__(self, bench):
        self.bench = bench
        self.process = None

    def start(self, target, _size):
        path = self.bench.path("nbd.sock")
        self.process = subprocess.Popen(["qemu-nbd", "-t", "-e", "8", "-f", "raw", "--cache=none", "--aio=io_uring",
                                         "--discard=unmap", "-k", path, target], stdin=subprocess.DEVNULL)
        while not os.path.exists(path):
            time.sleep(0.01)
        return f"nbd+unix:///?socket={path}"

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.bench.remove("nbd.sock")


class Tgtd:
    """A thin unit of an iSCSI target."""

    name = "tgtd"
    speaks_nbd = False
    iqn = "iqn.2026-11.example.blockmig:bench"

    def __init__(self, bench):
        self.environment = dict(os.environ, TGT_IPC_SOCKET=bench.path("tgtd"))
        self.process = None

    def admin(self, *arguments):
        return subprocess.run(["tgtadm", "-C", "1", "--lld", "iscsi", *arguments], env=self.environment,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0

    def start(self, target, _size):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            portal = "127.0.0.1:%d" % probe.getsockname()[1]
        self.process = subprocess.Popen(["tgtd", "-f", "-C", "1", "--iscsi", "portal=" + portal], env=self.environment,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.admin("--op", "show", "--mode", "sys"):
            time.sleep(0.05)
        self.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", self.iqn)
        self.admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        self.admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", target)
        self.admin("--op", "update", "--mode", "logicalunit", "--tid", "1", "--lun", "1",
                   "--params", "thin_provisioning=1")
        return f"iscsi://{portal}/{self.iqn}/1"

    def stop(self):
        self.process.kill()  # it does not end by SIGTERM as long as it has targets
        self.process.wait()


SERVERS = (QemuNbd, Tgtd)


class Network:
    def __init__(self, bench, quietly):
        self.bench = bench
        self.quietly = quietly

    def once(self, server, size, command):
        """Seconds of the command for a URI, onto a fresh target."""
        target = self.bench.path("target")
        self.bench.remove("target")
        with open(target, "wb") as file:
            file.truncate(size)
        uri = server.start(target, size)
        seconds = self.bench.timed(*command(uri))[0]
        server.stop()
        return seconds

    def contenders(self, server):
        source = self.bench.path("source")
        copy = (self.bench.tool, "copy", "-q", "-O", "raw")
        result = {
            "copy": lambda uri: (*copy, source, uri),
            "copy-none": lambda uri: (*copy, "--verify=none", source, uri),
            "convert": lambda uri: ("qemu-img", "convert", "-T", "none", "-t", "none", "-n", "-O", "raw", source, uri),
            "nbdcopy": lambda uri: ("nbdcopy", "--flush", "--", "[", "qemu-nbd", "-r", "-f", "qcow2", "--cache=none",
                                    "--aio=io_uring", source, "]", uri),
        }
        if not server.speaks_nbd:
            del result["nbdcopy"]
        return result

    def rounds(self, server, size, contenders):
        names = list(contenders)
        results = []
        for number in range(self.bench.options.rounds):
            start = number % len(names)
            result = {}
            for name in names[start:] + names[:start]:
                result[name] = self.once(server, size, contenders[name])
                print(f"  {server.name}, round {number + 1}: {name:<10} {result[name]:6.2f} s", flush=True)
            results.append(result)
        return results

    def rows(self, server, rounds):
        for what, ours, peer, limit in (
                (f"verified copy to {server.name} / qemu-img convert", "copy", "convert", 1 / 1.3),
                (f"copy --verify=none to {server.name} / nbdcopy", "copy-none", "nbdcopy", 1)):
            if all(peer in r for r in rounds):
                self.bench.row(what, statistics.median(r[ours] for r in rounds),
                               statistics.median(r[peer] for r in rounds),
                               statistics.median(r[ours] / r[peer] for r in rounds), limit)

    def run(self, size):
        print(f"\ncopies to servers: {size} of virtual disk, mixed data", flush=True)
        source = self.bench.make("mixed", "source", size, size)
        virtual = int(self.quietly("sh", "-c", 'qemu-img info --output=json "$0" | jq ".[\\"virtual-size\\"]"', source))
        results = [(server, self.rounds(server, virtual, self.contenders(server)))
                   for server in (kind(self.bench) for kind in SERVERS)]
        print(f"\n{'':<58} {'ours s':>8} {'peer s':>8} {'ratio':>6}  target")
        for server, rounds in results:
            self.rows(server, rounds)
        self.bench.remove("source", "target")
