# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of tools/bench that copies a disk with a real file system to another host: a network namespace at the
other end of a veth pair, in paired rounds with cold caches.

The link has 1 Gbit/s in each direction, and in the end no limit.  blockmig's way is encrypted and verified; the
others' is neither.  Bytes are those that the link counts, in both directions.
"""
import os
import random
import socket
import statistics
import subprocess
import time

NEAR, FAR = "10.231.78.1", "10.231.78.2"
FILLED = 0.7
RATE = "1gbit"


class Link:
    """A namespace, the pair of devices that leads to it, and what runs in it."""

    def __init__(self, quietly):
        self.quietly = quietly
        self.name, self.device = f"blockmig-bench-{os.getpid()}", f"bmb{os.getpid() % 10 ** 9}"
        quietly("ip", "netns", "add", self.name)
        try:
            quietly("ip", "link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            quietly("ip", "addr", "add", NEAR + "/30", "dev", self.device)
            quietly("ip", "link", "set", self.device, "up")
            for command in (("addr", "add", FAR + "/30", "dev", "eth0"), ("link", "set", "eth0", "up"),
                            ("link", "set", "lo", "up")):
                quietly("ip", "-n", self.name, *command)
        except BaseException:
            self.close()
            raise

    def limit(self, rate):
        for where, device in ((["tc"], self.device), (["tc", "-n", self.name], "eth0")):
            if rate:
                self.quietly(*where, "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb",
                             "latency", "20ms")
            else:
                self.quietly(*where, "qdisc", "del", "dev", device, "root")

    def bytes(self):
        total = 0
        for direction in ("rx_bytes", "tx_bytes"):
            with open(f"/sys/class/net/{self.device}/statistics/{direction}", encoding="ascii") as file:
                total += int(file.read())
        return total

    def start(self, port, *command):
        process = subprocess.Popen(["ip", "netns", "exec", self.name, *command], stdin=subprocess.DEVNULL)
        while process.poll() is None:
            try:
                socket.create_connection((FAR, port), 1).close()
                return process
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{command[0]} has ended")

    def close(self):
        self.quietly("ip", "netns", "del", self.name)


class Agent:
    def __init__(self, bench, quietly):
        self.bench, self.quietly = bench, quietly
        self.link = None
        bench.environment["BLOCKMIG_AGENT_TLS"] = bench.path("client")

    # ---- what is needed ----------------------------------------------------------------------------

    def certificate(self, name, kind, *lines):
        """Signed by itself, or by the one in "ca"."""
        directory = self.bench.path(name)
        os.makedirs(directory, exist_ok=True)
        key, template = os.path.join(directory, name + "-key.pem"), self.bench.path("template")
        with open(template, "w", encoding="ascii") as file:
            file.write("\n".join((f"cn = {name}", *lines, "")))
        self.quietly("certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", key)
        by = [] if name == "ca" else ["--load-ca-certificate", self.bench.path("ca/ca-cert.pem"),
                                      "--load-ca-privkey", self.bench.path("ca/ca-key.pem")]
        self.quietly("certtool", kind, "--load-privkey", key, "--template", template, *by,
                     "--outfile", os.path.join(directory, name + "-cert.pem"))
        if by:
            self.quietly("cp", self.bench.path("ca/ca-cert.pem"), directory)

    def configure(self):
        self.certificate("ca", "--generate-self-signed", "ca", "cert_signing_key")
        self.certificate("server", "--generate-certificate", f"ip_address = {FAR}", "tls_www_server", "signing_key")
        self.certificate("client", "--generate-certificate", "tls_www_client", "signing_key")
        os.makedirs(self.bench.path("store"), exist_ok=True)
        with open(self.bench.path("agent.conf"), "w", encoding="utf-8") as file:
            file.write(f"[agent]\nlisten={FAR}:16600\ntls-directory={self.bench.path('server')}\nallow=client\n"
                       f"[datastore store]\ndirectory={self.bench.path('store')}\n")

    def make_disk(self, size):
        """An ext4 with files of this host's /usr, which ones and in which order by chance, in qcow2."""
        raw, mount, names = self.bench.path("raw"), self.bench.path("mount"), self.bench.path("names")
        files = sorted(os.path.join(where, name) for where, _, all_names in os.walk("/usr") for name in all_names)
        random.Random(7).shuffle(files)
        room = int(size * FILLED)
        with open(names, "w", encoding="utf-8", errors="surrogateescape") as file:
            for path in files:
                if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > size // 16:
                    continue
                room -= os.path.getsize(path)
                if room < 0:
                    break
                file.write(path + "\0")
        with open(raw, "wb") as file:
            file.truncate(size)
        os.makedirs(mount, exist_ok=True)
        self.quietly("mkfs.ext4", "-q", "-F", raw)
        self.quietly("mount", "-o", "loop", raw, mount)
        try:
            self.quietly("sh", "-c", 'tar --null -T "$0" -cPf - | tar -xf - -C "$1"', names, mount)
        finally:
            self.quietly("umount", mount)
        self.quietly("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.bench.path("source"))
        self.bench.remove("raw", "names")

    # ---- what competes -----------------------------------------------------------------------------

    def measured(self, command):
        before = self.link.bytes()
        seconds = self.bench.timed(*command)[0]
        return seconds, self.link.bytes() - before

    def to_agent(self, *options):
        self.bench.remove("store/target")
        return self.measured((self.bench.tool, "copy", "-q", "-O", "qcow2", *options, self.bench.path("source"),
                              f"blockmig://{FAR}/store/target"))

    def from_agent(self):
        self.bench.remove("back")
        return self.measured((self.bench.tool, "copy", "-q", "-O", "qcow2", f"blockmig://{FAR}/store/source",
                              self.bench.path("back")))

    def locally(self):
        self.bench.remove("back")
        return self.measured((self.bench.tool, "copy", "-q", "-O", "qcow2", self.bench.path("source"),
                              self.bench.path("back")))

    def to_nbd(self, command):
        """To a qcow2 image behind a qemu-nbd over there."""
        target = self.bench.path("store/peer")
        self.bench.remove("store/peer")
        self.quietly("qemu-img", "create", "-q", "-f", "qcow2", target, str(self.size))
        server = self.link.start(10809, "qemu-nbd", "-t", "-e", "16", "-f", "qcow2", "--cache=none", "--aio=io_uring",
                                 "--discard=unmap", "-b", FAR, target)
        try:
            return self.measured(command(f"nbd://{FAR}"))
        finally:
            server.terminate()
            server.wait()

    def nbdcopy(self):
        return self.to_nbd(lambda uri: (
            "nbdcopy", "--flush", "--destination-is-zero", "--", "[", "qemu-nbd", "-r", "-e", "16", "-f", "qcow2",
            "--cache=none", "--aio=io_uring", self.bench.path("source"), "]", uri))

    def convert(self):
        return self.to_nbd(lambda uri: ("qemu-img", "convert", "-T", "none", "-n", "--target-is-zero", "-O", "raw",
                                        self.bench.path("source"), uri))

    def rounds(self, where, contenders):
        names, results = list(contenders), []
        for number in range(self.bench.options.rounds):
            start, result = number % len(names), {}
            for name in names[start:] + names[:start]:
                result[name] = contenders[name]()
                print(f"  {where}, round {number + 1}: {name:<12} {result[name][0]:6.2f} s "
                      f"{result[name][1] / 1e6:7.0f} MB", flush=True)
            results.append(result)
        return results

    # ---- the table ---------------------------------------------------------------------------------

    def compare(self, what, rounds, names, index, limit):
        ours, peer = ([r[name][index] / (1e6 if index else 1) for r in rounds] for name in names)
        self.bench.row(what, statistics.median(ours), statistics.median(peer),
                       statistics.median(a / b for a, b in zip(ours, peer)), limit)

    def measure(self):
        self.link.limit(RATE)
        slow = self.rounds("1 Gbit/s", {"to-agent": self.to_agent, "nbdcopy": self.nbdcopy, "convert": self.convert})
        self.link.limit(None)
        fast = self.rounds("no limit", {"to-agent": self.to_agent, "from-agent": self.from_agent,
                                        "local": self.locally, "nbdcopy": self.nbdcopy})
        print(f"\n{'':<58} {'ours':>8} {'peer':>8} {'ratio':>6}  target")
        for what, rounds, names, index, limit in (
                ("1 Gbit/s: verified copy / nbdcopy, s", slow, ("to-agent", "nbdcopy"), 0, 0.5),
                ("1 Gbit/s: bytes on the link / nbdcopy's, MB", slow, ("to-agent", "nbdcopy"), 1, 0.5),
                ("1 Gbit/s: verified copy / qemu-img convert, s", slow, ("to-agent", "convert"), 0, None),
                ("no limit: verified copy to it / local verified copy, s", fast, ("to-agent", "local"), 0, 1 / 0.8),
                ("no limit: verified copy from it / local verified copy, s", fast, ("from-agent", "local"), 0, None),
                ("no limit: verified copy to it / nbdcopy, s", fast, ("to-agent", "nbdcopy"), 0, None)):
            self.compare(what, rounds, names, index, limit)

    def run(self, size):
        self.size = size
        print(f"\ncopies to another host: {size >> 20} MiB of ext4 with files of /usr", flush=True)
        self.configure()
        self.make_disk(size)
        self.quietly("cp", self.bench.path("source"), self.bench.path("store/source"))
        self.link = Link(self.quietly)
        try:
            agent = self.link.start(16600, os.path.join(os.path.dirname(self.bench.tool), "blockmigd"), "--config",
                                    self.bench.path("agent.conf"))
            try:
                self.measure()
            finally:
                agent.terminate()
                agent.wait()
        finally:
            self.link.close()
        self.bench.remove("source", "back", "store/source", "store/target", "store/peer")
