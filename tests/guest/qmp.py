#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""qmp.py SOCKET STEP...: one connection to a monitor, some steps, and what each returned, one per line.
qmp.py --record FILE SOCKET: every event, one per line, until the machine ends.

A step is a command ({"execute": ...}) or {"wait": EVENT, "data": {...}, "seconds": N}, which is over when the
event comes (or has come since the connection) with at least these data.  An error ends it with exit status 1.
"""
import json
import socket
import sys
import time


class Monitor:
    PATIENCE = 120  # seconds: a busy machine may take long to start a hypervisor

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + self.PATIENCE
        while True:
            try:
                self.socket.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.buffer = b""
        self.events = []
        self.receive(self.PATIENCE)
        self.command({"execute": "qmp_capabilities"}, self.PATIENCE)

    def receive(self, seconds):
        """The next message; None at the end of the connection."""
        self.socket.settimeout(seconds)
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                return None
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def command(self, command, seconds=30):
        self.socket.sendall(json.dumps(command).encode() + b"\n")
        while True:
            message = self.receive(seconds)
            if message is None:
                sys.exit("the monitor closed the connection")
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                sys.exit(f"{command['execute']}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, name, data, seconds):
        deadline = time.monotonic() + seconds
        while True:
            for i, event in enumerate(self.events):
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    return self.events.pop(i)
            try:
                message = self.receive(max(0.001, deadline - time.monotonic()))
            except TimeoutError:
                sys.exit(f"no {name} {data} within {seconds} s; came: {self.events}")
            if message is None:
                sys.exit(f"the monitor closed the connection before {name}")
            if "event" in message:
                self.events.append(message)


def record(path, monitor):
    with open(path, "a", encoding="utf-8", buffering=1) as out:
        for event in monitor.events:
            print(json.dumps(event), file=out)
        while True:
            try:
                message = monitor.receive(None)
            except ConnectionResetError:
                return
            if message is None:
                return
            print(json.dumps(message), file=out)


def main():
    if sys.argv[1] == "--record":
        record(sys.argv[2], Monitor(sys.argv[3]))
        return
    monitor = Monitor(sys.argv[1])
    for text in sys.argv[2:]:
        step = json.loads(text)
        if "wait" in step:
            print(json.dumps(monitor.wait(step["wait"], step.get("data", {}), step.get("seconds", 30))))
        else:
            print(json.dumps(monitor.command(step)))


main()
