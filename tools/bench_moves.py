# SPDX-License-Identifier: LGPL-2.1-or-later
"""The part of tools/bench that moves disks of a running machine: pauses by the hypervisor's own STOP and
RESUME events, forecasts, bytes, and what the guest notices, beside QEMU's own mirror of the same disk.

The guest is that of tests/guest: it writes 4 KiB blocks at random places as fast as it can, under TCG.
"""
import atexit
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time

import bench_network

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LINK = 100 << 20  # bytes per second: a link of 1 Gbit/s
GUEST = os.path.join(TOP, "tests/guest")


class Guest:
    """One machine with qcow2 disks, started as libvirt does it."""

    def __init__(self, directory, disks, append):
        self.directory = directory
        build = os.path.join(directory, "..", "guest")
        subprocess.run([os.path.join(GUEST, "build"), build], check=True, stdout=subprocess.DEVNULL)
        os.makedirs(directory, exist_ok=True)
        arguments = []
        for i, disk in enumerate(disks):
            arguments += [
                "-blockdev", f"driver=file,node-name=disk{i}-file,filename={disk},cache.direct=on,"
                             "auto-read-only=on,discard=unmap",
                "-blockdev", f"driver=qcow2,node-name=disk{i},file=disk{i}-file,cache.direct=on,"
                             "read-only=off,discard=unmap",
                "-device", f"virtio-blk-pci,id=vd{i},drive=disk{i}"]
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc", "-m", "128", "-display", "none", "-nodefaults",
             *(word for name in ("qmp", "qmp-events", "qmp-bench")
               for word in ("-qmp", f"unix:{self.path(name)},server=on,wait=off")),
             "-chardev", f"file,id=console,path={self.path('console')}", "-serial", "chardev:console",
             "-chardev", f"socket,id=command,path={self.path('command')},server=on,wait=off",
             "-serial", "chardev:command",
             "-kernel", os.path.join(build, "vmlinux"), "-initrd", os.path.join(build, "initramfs"),
             "-append", "console=ttyS0 quiet loglevel=1 panic=-1 nokaslr mitigations=off rdinit=/init " + append,
             *arguments], stdin=subprocess.DEVNULL)
        atexit.register(self.close)
        self.wait_for(lambda: "guest: ready" in self.read("console"))
        self.recorder = subprocess.Popen(
            [sys.executable, os.path.join(GUEST, "qmp.py"), "--record", self.path("events"), self.path("qmp-events")])
        self.wait_for(lambda: os.path.exists(self.path("events")))

    def path(self, name):
        return os.path.join(self.directory, name)

    def read(self, name):
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    @staticmethod
    def wait_for(condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                sys.exit("bench: the test guest does not answer")
            time.sleep(0.05)

    def command(self, line):
        with socket.socket(socket.AF_UNIX) as port:
            port.settimeout(120)
            port.connect(self.path("command"))
            port.sendall(line.encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                answer += port.recv(4096)
        return answer.decode().strip()

    def stats(self):
        return json.loads(self.command("stats"))

    def writes_per_second(self, seconds):
        before, begin = self.stats()["writes"], time.monotonic()
        time.sleep(seconds)
        return (self.stats()["writes"] - before) / (time.monotonic() - begin)

    def qmp(self, *steps):
        done = subprocess.run([sys.executable, os.path.join(GUEST, "qmp.py"), self.path("qmp-bench"),
                               *(json.dumps(step) for step in steps)], check=True, stdout=subprocess.PIPE, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def pauses(self):
        """Milliseconds between each STOP and its RESUME."""
        found, stopped = [], None
        for line in self.read("events").splitlines():
            event = json.loads(line)
            when = event["timestamp"]["seconds"] * 1000 + event["timestamp"]["microseconds"] / 1000
            if event["event"] == "STOP":
                stopped = when
            elif event["event"] == "RESUME" and stopped is not None:
                found.append(when - stopped)
        return found

    def close(self):
        atexit.unregister(self.close)
        for process in (self.process, self.recorder):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()


class Moves:
    def __init__(self, bench, quietly):
        self.bench, self.quietly = bench, quietly

    def datastores(self, name, disks, size, data):
        """Two directories, and in the first of them new images with some random data."""
        here, there = (self.bench.path(f"{name}-{side}") for side in "ab")
        for directory in (here, there):
            os.makedirs(directory)
        paths = []
        for i in range(disks):
            paths.append(os.path.join(here, f"disk{i}.qcow2"))
            self.quietly("qemu-img", "create", "-q", "-f", "qcow2", paths[-1], size)
            for offset in range(0, data, 64):
                self.quietly("qemu-io", "-f", "qcow2", "-c",
                                   f"write -P {offset % 250 + 1} {offset + 128}M 64M", paths[-1])
        return here, there, paths

    def move(self, guest, target, *options, delete=True):
        options = [*options, "--delete-source"] if delete else options
        done = subprocess.run([self.bench.tool, "move", f"qmp:{guest.path('qmp')}", target, "--json", *options], env=self.bench.environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench: move: exit {done.returncode}\n{done.stderr}")
        return json.loads(done.stdout)

    def steps(self, job):
        """What took how long in the pause."""
        shown = json.loads(self.quietly(self.bench.tool, "job", "show", job, "--json", env=self.bench.environment))
        return next(e["text"] for e in shown["events"] if "runs on the target" in e["text"]).partition(" after ")[2]

    def back_and_forth(self, disks, count, limit):
        here, there, paths = self.datastores(f"move{disks}", disks, "1G", 128)
        guest = Guest(self.bench.path(f"machine{disks}"), paths, "span=64M")
        reports, pauses = [], []
        for i in range(count):
            before = len(guest.pauses())
            time.sleep(1)
            reports.append(self.move(guest, there if i % 2 == 0 else here, "--max-pause=10s"))
            time.sleep(0.2)
            pauses.append(max(guest.pauses()[before:]))
            if self.bench.options.verbose:
                print(f"  move {i + 1}: pause {pauses[-1]:.1f} ms, forecast {reports[-1]['pause_forecast_ms']:.1f} ms, "
                      f"{sum(d['bytes_in_pause'] for d in reports[-1]['disks'])} bytes, "
                      f"{reports[-1]['passes']} passes; {self.steps(reports[-1]['job'])}", flush=True)
        verdict = guest.command("check")
        guest.close()
        if not verdict.startswith("OK"):
            sys.exit(f"bench: the guest lost something: {verdict}")
        what = f"{disks} disk{'s' * (disks > 1)}, {count} moves"
        self.bench.limit_row(f"{what}: longest pause", max(pauses), "ms", limit)
        self.bench.limit_row(f"{what}: median pause", statistics.median(pauses), "ms", None)
        near = sum(0.5 <= report["pause_forecast_ms"] / pause <= 2 for report, pause in zip(reports, pauses))
        self.bench.limit_row(f"{what}: forecasts not within 2x of the pause", count - near, "", count // 10)

    def to_a_unit(self, count, limit):
        """From a datastore to a unit of an iSCSI target and back, and so on."""
        here, _, paths = self.datastores("unit", 1, "1G", 128)
        file = self.bench.path("unit")
        with open(file, "wb") as unit:
            unit.truncate(1 << 30)
        server = bench_network.Tgtd(self.bench)
        uri = server.start(file, 1 << 30)
        guest = Guest(self.bench.path("machine-unit"), paths, "span=64M")
        pauses = []
        for i in range(count):
            before = len(guest.pauses())
            time.sleep(1)
            options = ["--scratch", here] if i % 2 == 0 else ["--scratch", here, "-O", "qcow2"]
            self.move(guest, uri if i % 2 == 0 else os.path.join(here, f"back{i}.qcow2"), "--max-pause=10s", *options,
                      delete=i % 2 == 0)
            time.sleep(0.2)
            pauses.append(max(guest.pauses()[before:]))
        verdict = guest.command("check")
        guest.close()
        server.stop()
        if not verdict.startswith("OK"):
            sys.exit(f"bench: the guest lost something: {verdict}")
        self.bench.limit_row(f"file to iSCSI unit and back, {count} moves: longest pause", max(pauses), "ms", limit)
        self.bench.limit_row(f"file to iSCSI unit and back, {count} moves: median pause", statistics.median(pauses), "ms", None)

    def watched_move(self, guest, target, *options):
        """The move's report, its seconds, and what the guest's writers had of the rate before and after it."""
        alone = guest.writes_per_second(5)
        guest.command("reset")
        first, begin = guest.stats()["writes"], time.monotonic()
        report = self.move(guest, target, *options)
        stats, seconds = guest.stats(), time.monotonic() - begin
        alone = (alone + guest.writes_per_second(5)) / 2
        return report, seconds, (stats["writes"] - first) / seconds / alone, stats["longest_write_us"] / 1000

    def beside_the_base(self):
        """What the guest's writers notice of the base copy; and of QEMU's own mirror of the same disk."""
        here, there, paths = self.datastores("busy", 1, "8G", 4096)
        guest = Guest(self.bench.path("busy"), paths, "span=64M")
        report, seconds, beside, longest = self.watched_move(guest, there)
        print(f"{'move of 4 GiB, verified':<58} {seconds:>8.2f} s")
        self.bench.limit_row("the guest's writes while it is moved / without", beside, "", 0.7, least=True)
        self.bench.limit_row("its longest write", longest, "ms", None)
        self.bench.limit_row("its pause", report["pause_ms"], "ms", None)
        _, seconds, beside, longest = self.watched_move(guest, here, "--guest-share=0")
        print(f"{'  the same with --guest-share=0':<58} {seconds:>8.2f} s, writes {beside:.2f}, longest {longest:.0f} ms")
        _, seconds, beside, longest = self.watched_move(guest, there, "--max-pause=0")
        print(f"{'  the same with --max-pause=0 (mirror)':<58} {seconds:>8.2f} s, writes {beside:.2f}")
        self.bench.limit_row("its longest write, mirror", longest, "ms", 100)
        _, seconds, beside, _ = self.watched_move(guest, here, f"--bandwidth={LINK >> 20}MiB/s")
        print(f"{f'  the same with {LINK >> 20} MiB/s':<58} {seconds:>8.2f} s, writes {beside:.2f}")
        self.peer_in_the_background(guest, os.path.join(here, "behind.qcow2"))
        self.peer(guest, os.path.join(here, "peer.qcow2"))
        guest.close()

    def peer(self, guest, target):
        """What `virsh blockcopy --pivot` makes QEMU do; nothing is verified."""
        size = 8 << 30
        node = guest.qmp({"execute": "query-block"})[0][0]["inserted"]["node-name"]
        self.quietly("qemu-img", "create", "-q", "-f", "qcow2", target, str(size))
        alone = guest.writes_per_second(5)
        guest.command("reset")
        first, begin = guest.stats()["writes"], time.monotonic()
        guest.qmp(
            {"execute": "blockdev-add", "arguments": {
                "driver": "qcow2", "node-name": "peer", "cache": {"direct": True},
                "file": {"driver": "file", "filename": target, "cache": {"direct": True}}}},
            {"execute": "blockdev-mirror", "arguments": {"job-id": "peer", "device": node, "target": "peer",
                                                          "sync": "full", "copy-mode": "write-blocking"}},
            {"wait": "BLOCK_JOB_READY", "seconds": 600},
            {"execute": "block-job-complete", "arguments": {"device": "peer"}},
            {"wait": "BLOCK_JOB_COMPLETED", "seconds": 60})
        seconds = time.monotonic() - begin
        beside = (guest.stats()["writes"] - first) / seconds
        print(f"{'  the same by QEMU, mirror write-blocking, not verified':<58} {seconds:>8.2f} s, "
              f"writes {beside / alone:.2f}, longest {guest.stats()['longest_write_us'] / 1000:.0f} ms")

    def peer_in_the_background(self, guest, target):
        """What `virsh migrate --copy-storage-all|inc` makes QEMU do, over a link as fast as LINK: it is ready when
        nothing is dirty any more."""
        patience = self.bench.options.patience
        node = guest.qmp({"execute": "query-block"})[0][0]["inserted"]["node-name"]
        self.quietly("qemu-img", "create", "-q", "-f", "qcow2", target, str(8 << 30))
        guest.qmp(
            {"execute": "blockdev-add", "arguments": {
                "driver": "qcow2", "node-name": "behind", "cache": {"direct": True},
                "file": {"driver": "file", "filename": target, "cache": {"direct": True}}}},
            {"execute": "blockdev-mirror", "arguments": {"job-id": "behind", "device": node, "target": "behind",
                                                          "sync": "full", "copy-mode": "background", "speed": LINK}})
        begin, job = time.monotonic(), {"ready": False}
        while not job["ready"] and time.monotonic() - begin < patience:
            time.sleep(0.5)
            job = guest.qmp({"execute": "query-block-jobs"})[0][0]
        seconds = time.monotonic() - begin
        guest.qmp({"execute": "block-job-cancel", "arguments": {"device": "behind", "force": True}},
                  {"wait": "BLOCK_JOB_CANCELLED", "seconds": 60},
                  {"execute": "blockdev-del", "arguments": {"node-name": "behind"}})
        os.unlink(target)
        how = f"{seconds:>8.2f} s" if job["ready"] else \
            f"not in {seconds:.0f} s: {(job['len'] - job['offset']) / 1048576:.1f} MiB are left"
        print(f"{'  QEMU, mirror in the background, as slow: in step':<58} {how}")

    def run(self):
        print("\nmoves of a machine that writes 4 KiB blocks as fast as it can")
        self.back_and_forth(1, self.bench.options.moves, 50)
        self.back_and_forth(2, self.bench.options.moves, 80)
        self.to_a_unit(self.bench.options.moves, 100)
        self.beside_the_base()
