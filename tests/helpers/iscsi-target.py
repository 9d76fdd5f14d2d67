#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A tiny iSCSI target that misbehaves on demand: one unit, any target name, no authentication.

    iscsi-target.py PORT FILE [OPTION]... [FAULT]...

prints "ready" when it listens.  Options:

    block=N          bytes of a block (512)
    thin=WORDS       comma-separated: unmap, same, zero (LBPRZ), status (GET LBA STATUS), lazy (UNMAP does nothing)
    max-transfer=N   MAXIMUM TRANSFER LENGTH in blocks
    no-same          WRITE SAME is not known
    login=ASC/ASCQ   unit attention of every session after the first (29/07)
    log=FILE         a line for every command: opcode, block, count
    reserve=WORD     persistent reservations as they should be; WORD "simple": but no PREEMPT AND ABORT

A fault is OPCODE[@BLOCK][*COUNT][+SKIP]=WHAT, opcode in hex; it hits COUNT commands (1; 0: all of them) that touch
the block, after SKIP of them.  WHAT is busy, full, conflict, KEY/ASC/ASCQ, drop (the connection), short (half of
the data), garbage (noise instead of an answer), huge (an answer whose lengths lie), pause (2 seconds) or hold (until the initiator has lost its registration).
"""
import os
import socket
import struct
import sys
import threading
import time

GOOD, CHECK, BUSY, CONFLICT, FULL, ABORTED = 0, 2, 8, 0x18, 0x28, 0x40
WRITES = (0x42, 0x8A, 0x93)
REGISTER, RESERVE, RELEASE, PREEMPT, PREEMPT_ABORT, REGISTER_IGNORE = 0, 1, 2, 4, 5, 6
BURST = 262144
NOISE = bytes((i * 37 + 11) & 255 for i in range(8192))


class Fault:
    def __init__(self, text):
        where, self.what = text.split("=", 1)
        where, _, skip = where.partition("+")
        where, _, count = where.partition("*")
        opcode, _, block = where.partition("@")
        self.opcode = int(opcode, 16)
        self.block = int(block) if block else None
        self.left = int(count) if count else 1
        self.forever = count == "0"
        self.skip = int(skip) if skip else 0

    def hits(self, opcode, block, count):
        if opcode != self.opcode or not (self.forever or self.left):
            return False
        if self.block is not None and not block <= self.block < block + count:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.left -= 1
        return True


class Gone(Exception):
    pass


class Reservations:
    """Of initiators, by name and ISID (SPC-4, 5.13): of the types only 5, write exclusive, registrants only."""

    def __init__(self):
        self.keys, self.holder, self.generation = {}, None, 0
        self.changed = threading.Condition()

    def shut_out(self, nexus):
        return self.holder is not None and nexus not in self.keys

    def tell(self, action):
        entries = b""
        if action == 0:
            entries = b"".join(struct.pack(">Q", key) for key in self.keys.values())
        elif action == 1 and self.holder is not None:
            entries = struct.pack(">Q5xBxx", self.keys[self.holder], 5)
        elif action == 3:
            for nexus, key in self.keys.items():
                name = nexus.encode() + bytes(-len(nexus) % 4 or 4)
                holds = nexus == self.holder
                entries += struct.pack(">Q4xBB4xHI", key, holds, 5 if holds else 0, 1, len(name) + 4)
                entries += struct.pack(">BBH", 0x45, 0, len(name)) + name
        return struct.pack(">II", self.generation, len(entries)) + entries

    def change(self, nexus, action, key, other):
        """Who lost what, or None: a conflict."""
        mine = self.keys.get(nexus, 0)
        lost = []
        if action != REGISTER_IGNORE and (mine != key or not (mine or action == REGISTER)):
            return None
        if action in (REGISTER, REGISTER_IGNORE):
            self.keys.pop(nexus, None)
            if other:
                self.keys[nexus] = other
            elif self.holder == nexus:
                self.holder = None
        elif action == RESERVE:
            if self.holder not in (None, nexus):
                return None
            self.holder = nexus
        elif action == RELEASE:
            self.holder = None if self.holder == nexus else self.holder
        else:
            lost = [n for n, k in self.keys.items() if k == other and n != nexus]
            if not lost and mine != other:
                return None
            if self.holder in lost or self.holder == nexus:
                self.holder = nexus
            for n in lost:
                del self.keys[n]
        self.generation += action not in (RESERVE, RELEASE)
        return lost


class Unit:
    def __init__(self, path, arguments):
        self.file = os.open(path, os.O_RDWR)
        self.options = dict(a.partition("=")[::2] for a in arguments
                            if a.split("=")[0] in ("block", "thin", "max-transfer", "no-same", "login", "log", "reserve"))
        self.faults = [Fault(a) for a in arguments if a.split("=")[0] not in self.options]
        self.block = int(self.options.get("block", 512))
        self.blocks = os.fstat(self.file).st_size // self.block
        self.thin = self.options.get("thin", "").split(",")
        self.mapped = {}
        self.lock = threading.Lock()
        self.log = open(self.options["log"], "w") if "log" in self.options else None
        self.sessions = 0
        self.reservations = Reservations()
        self.by_nexus = {}

    def fault(self, cdb):
        block, count = span(cdb)
        with self.lock:
            if self.log:
                print("%02x %d %d" % (cdb[0], block, count), file=self.log, flush=True)
            return next((f for f in self.faults if f.hits(cdb[0], block, count)), None)


def span(cdb):
    if cdb[0] in (0x88, 0x8A, 0x93, 0x9E):
        return struct.unpack_from(">QI", cdb, 2)
    return 0, 1


def sense(key, asc, ascq, information=None):
    data = bytearray(18)
    data[0] = 0x70 if information is None else 0xF0
    data[2] = key
    if information is not None:
        struct.pack_into(">I", data, 3, information)
    data[7] = 10
    data[12], data[13] = asc, ascq
    return bytes(data)


class Session:
    def __init__(self, connection, unit):
        self.connection, self.unit = connection, unit
        self.stat = 1
        self.expected = 1
        self.attentions = []
        self.nexus = ""
        self.aborted = 0  # counts what took this initiator's commands away

    # ---- PDUs ----

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.connection.recv(count - len(data))
            if not piece:
                raise Gone
            data += piece
        return bytes(data)

    def read_pdu(self):
        header = self.receive(48)
        length = int.from_bytes(header[5:8], "big")
        data = self.receive((length + 3) // 4 * 4)[:length]
        self.receive(header[4] * 4)
        return header, data

    def send(self, header, data=b""):
        header[5:8] = len(data).to_bytes(3, "big")
        self.connection.sendall(bytes(header) + data + bytes(-len(data) % 4))

    def header(self, opcode, flags, itt, advance=True):
        header = bytearray(48)
        header[0], header[1] = opcode, flags
        header[16:20] = itt
        struct.pack_into(">III", header, 24, self.stat, self.expected, self.expected + 64)
        if advance:
            self.stat += 1
        return header

    # ---- login and the rest that is no command ----

    def log_in(self):
        while True:
            request, data = self.read_pdu()
            if request[0] & 0x3F != 0x03:
                raise Gone
            for pair in data.split(b"\0"):
                if pair.startswith(b"InitiatorName="):
                    self.nexus = "%s,i,0x%s" % (pair[14:].decode(), request[8:14].hex())
            self.unit.by_nexus[self.nexus] = self
            stage, self.expected = request[1] >> 2 & 3, int.from_bytes(request[24:28], "big")
            answer = self.header(0x23, 0x80 | stage << 2 | (1 if stage == 0 else 3), request[16:20])
            answer[8:14] = request[8:14]
            answer[14:16] = b"\0\1" if stage == 1 else request[14:16]
            if stage == 0:
                text = "TargetPortalGroupTag=1\0AuthMethod=None\0"
            else:
                text = ("TargetPortalGroupTag=1\0HeaderDigest=None\0DataDigest=None\0InitialR2T=Yes\0ImmediateData=Yes\0"
                        "MaxBurstLength=%d\0FirstBurstLength=65536\0MaxRecvDataSegmentLength=262144\0"
                        "MaxOutstandingR2T=1\0DefaultTime2Wait=0\0DefaultTime2Retain=0\0MaxConnections=1\0"
                        "ErrorRecoveryLevel=0\0" % BURST)
            self.send(answer, text.encode())
            if stage == 1:
                return

    def serve(self):
        self.log_in()
        unit = self.unit
        with unit.lock:
            unit.sessions += 1
            first = unit.sessions == 1
        attention = "29/07" if first else unit.options.get("login", "29/07")
        self.attentions.append([int(n, 16) for n in attention.split("/")])
        while True:
            request, data = self.read_pdu()
            opcode = request[0] & 0x3F
            if not request[0] & 0x40:
                self.expected = int.from_bytes(request[24:28], "big") + 1
            if opcode == 0x01:
                self.command(request, data)
            elif opcode == 0x00 and request[16:20] != b"\xff" * 4:
                answer = self.header(0x20, 0x80, request[16:20])
                answer[20:24] = b"\xff" * 4
                self.send(answer, data)
            elif opcode == 0x06:
                self.send(self.header(0x26, 0x80, request[16:20]))
                return

    # ---- commands ----

    def status(self, itt, status, data=b"", residual=0, flags=0x80):
        answer = self.header(0x21, flags | (0x02 if residual else 0), itt)
        answer[3] = status
        struct.pack_into(">I", answer, 44, residual)
        self.send(answer, struct.pack(">H", len(data)) + data if data else b"")

    def check(self, itt, key, asc, ascq, information=None):
        self.status(itt, CHECK, sense(key, asc, ascq, information))

    def give(self, itt, data, room):
        residual = max(0, room - len(data))
        data = data[:room]
        number, at = 0, 0
        while at < len(data):
            piece = data[at:at + 65536]
            pdu = self.header(0x25, 0x80 if at + len(piece) == len(data) else 0, itt, advance=False)
            pdu[20:24] = b"\xff" * 4
            struct.pack_into(">II", pdu, 36, number, at)
            self.send(pdu, piece)
            number, at = number + 1, at + len(piece)
        self.status(itt, GOOD, residual=residual)

    def take(self, request, data):
        """All the data of a write: what came with the command, and what is asked for."""
        wanted = int.from_bytes(request[20:24], "big")
        data = bytearray(data)
        number = 0
        while len(data) < wanted:
            some = min(BURST, wanted - len(data))
            ask = self.header(0x31, 0x80, request[16:20], advance=False)
            ask[8:16] = request[8:16]
            ask[20:24] = struct.pack(">I", number + 1)
            struct.pack_into(">III", ask, 36, number, len(data), some)
            self.send(ask)
            end = len(data) + some
            held = []
            while len(data) < end:
                header, more = self.read_pdu()
                if header[0] & 0x3F == 0x05:
                    data += more
                else:
                    held.append((header, more))
            for header, more in held:
                self.expected = int.from_bytes(header[24:28], "big") + 1
                self.later.append((header, more))
            number += 1
        return bytes(data)

    later = None

    def command(self, request, data):
        self.later = []
        self.do(request, data)
        while self.later:
            header, more = self.later.pop(0)
            if header[0] & 0x3F == 0x01:
                self.do(header, more)

    def do(self, request, data):
        itt, cdb, room = request[16:20], request[32:48], int.from_bytes(request[20:24], "big")
        if request[1] & 0x20:
            data = self.take(request, data)
        if self.attentions and cdb[0] != 0x12:
            asc, ascq = self.attentions.pop(0)
            return self.check(itt, 6, asc, ascq)
        if cdb[0] in WRITES and self.unit.reservations.shut_out(self.nexus):
            return self.status(itt, CONFLICT)
        aborted = self.aborted
        fault = self.unit.fault(cdb)
        if fault and self.misbehave(fault, itt, cdb, room):
            return None
        if self.aborted != aborted:
            return self.status(itt, ABORTED)
        return self.behave(itt, cdb, room, data)

    def misbehave(self, fault, itt, cdb, room):
        what = fault.what
        if what == "drop":
            raise Gone
        if what == "pause":
            time.sleep(2)
            return False
        if what == "hold":
            with self.unit.reservations.changed:
                self.unit.reservations.changed.wait_for(lambda: self.nexus not in self.unit.reservations.keys, 60)
            return False
        if what in ("busy", "full", "conflict"):
            self.status(itt, {"busy": BUSY, "full": FULL, "conflict": CONFLICT}[what])
        elif what == "short":
            self.give(itt, bytes(room // 2), room)
        elif what == "garbage":
            self.give(itt, (NOISE * (room // len(NOISE) + 1))[:room], room)
        elif what == "huge":
            self.give(itt, b"\xff" * min(room, 40), room)
        else:
            key, asc, ascq = (int(n, 16) for n in what.split("/"))
            self.check(itt, key, asc, ascq, fault.block)
        return True

    def behave(self, itt, cdb, room, data):
        unit, opcode = self.unit, cdb[0]
        block, count = span(cdb)
        if opcode in (0x88, 0x8A, 0x93) and block + count > unit.blocks:
            return self.check(itt, 5, 0x21, 0)
        if opcode == 0x00 or opcode == 0x91:
            return self.status(itt, GOOD)
        if opcode == 0x12:
            return self.inquiry(itt, cdb, room)
        if opcode == 0x88:
            return self.give(itt, os.pread(unit.file, count * unit.block, block * unit.block), room)
        if opcode == 0x8A:
            os.pwrite(unit.file, data, block * unit.block)
            self.mark(block, count, True)
            return self.status(itt, GOOD)
        if opcode == 0x93 and "no-same" not in unit.options:
            os.pwrite(unit.file, data * count, block * unit.block)
            self.mark(block, count, not cdb[1] & 8)
            return self.status(itt, GOOD)
        if opcode == 0x42 and "unmap" in unit.thin:
            return self.unmap(itt, data)
        if opcode == 0x9E and cdb[1] & 0x1F == 0x10:
            thin = bool(unit.options.get("thin"))
            flags = (0x80 if thin else 0) | (0x40 if "zero" in unit.thin else 0)
            return self.give(itt, struct.pack(">QIBBB17x", unit.blocks - 1, unit.block, 0, 0, flags), room)
        if opcode == 0x9E and cdb[1] & 0x1F == 0x12 and "status" in unit.thin:
            return self.lba_status(itt, block, room)
        if opcode in (0x5E, 0x5F) and "reserve" in unit.options:
            return self.reserve(itt, cdb, room, data)
        if opcode == 0x5E and cdb[1] & 0x1F == 3:
            name = b"iqn.2026-11.example:other,i,0x400001370000\0\0"
            entry = struct.pack(">Q4xBB4xHI", 0xABC, 1, 5, 1, len(name) + 4) + struct.pack(">BBH", 0x45, 0, len(name)) + name
            return self.give(itt, struct.pack(">II", 1, len(entry)) + entry, room)
        return self.check(itt, 5, 0x20, 0)

    def reserve(self, itt, cdb, room, data):
        all_of_them, action = self.unit.reservations, cdb[1] & 0x1F
        if cdb[0] == 0x5E:
            return self.give(itt, all_of_them.tell(action), room)
        if action == PREEMPT_ABORT and self.unit.options["reserve"] == "simple":
            return self.check(itt, 5, 0x24, 0)
        with all_of_them.changed:
            lost = all_of_them.change(self.nexus, action, *struct.unpack_from(">QQ", data))
            for nexus in lost or [] if action == PREEMPT_ABORT else []:
                self.unit.by_nexus[nexus].aborted += 1
            all_of_them.changed.notify_all()
        return self.status(itt, CONFLICT if lost is None else GOOD)

    def inquiry(self, itt, cdb, room):
        unit = self.unit
        if not cdb[1] & 1:
            page = bytes([0, 0, 6, 2, 31, 0, 0, 2]) + b"TEST    STUB            0001"
        elif cdb[2] == 0xB0:
            page = bytearray(64)
            page[1], page[3] = 0xB0, 60
            struct.pack_into(">I", page, 8, int(unit.options.get("max-transfer", 0)))
            struct.pack_into(">II", page, 20, 0xFFFFFFFF, 1)
        elif cdb[2] == 0xB2:
            flags = (0x80 if "unmap" in unit.thin else 0) | (0x40 if "same" in unit.thin else 0)
            page = bytes([0, 0xB2, 0, 4, 0, flags, 2, 0])
        elif cdb[2] == 0x83:
            page = bytes([0, 0x83, 0, 0])
        else:
            return self.check(itt, 5, 0x24, 0)
        return self.give(itt, bytes(page), min(room, int.from_bytes(cdb[3:5], "big")))

    def mark(self, block, count, mapped):
        if "status" in self.unit.thin:
            for b in range(block, block + count):
                self.unit.mapped[b] = mapped

    def unmap(self, itt, data):
        block, count = struct.unpack_from(">QI", data, 8)
        if "lazy" in self.unit.thin:  # every second block stays as it is
            blocks = range(block, block + count, 2)
        else:
            blocks = range(block, block + count)
        for b in blocks:
            os.pwrite(self.unit.file, bytes(self.unit.block), b * self.unit.block)
            self.mark(b, 1, False)
        return self.status(itt, GOOD)

    def lba_status(self, itt, block, room):
        unit, end = self.unit, block
        mapped = unit.mapped.get(block, True)
        while end < unit.blocks and unit.mapped.get(end, True) == mapped and end - block < 65536:
            end += 1
        self.give(itt, struct.pack(">I4xQIB3x", 20, block, end - block, 0 if mapped else 1), room)


def serve(connection, unit):
    try:
        Session(connection, unit).serve()
    except (Gone, OSError):
        pass
    connection.close()


def main():
    unit = Unit(sys.argv[2], sys.argv[3:])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen(16)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(connection, unit), daemon=True).start()


main()
