#!/usr/bin/python3 -u
# SPDX-License-Identifier: LGPL-2.1-or-later
"""activate.py [unix:PATH | tcp:ADDRESS:PORT | datagram:PATH]... -- PROGRAM [ARGUMENTS...]

Starts a program as systemd does by a socket unit: opens the sockets, waits until somebody connects, hands them over and
keeps them; when the program has ended it waits again.  Prints the pid of each and, at its end, its exit status.
"""
import os
import select
import signal
import socket
import sys


def listen(text):
    kind, where = text.split(":", 1)
    if kind == "tcp":
        address, port = where.rsplit(":", 1)
        listener = socket.create_server((address, int(port)))
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
        listener.bind(where)
        if kind == "unix":
            listener.listen()
    return listener


def start(listeners, program):
    pid = os.fork()
    if pid:
        return pid
    high = [os.dup(listener.fileno()) for listener in listeners]
    for number, descriptor in enumerate(high, 3):
        os.dup2(descriptor, number)
    os.closerange(3 + len(high), 100)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)))
    os.execv(program[0], program)


def main():
    at = sys.argv.index("--")
    listeners = [listen(text) for text in sys.argv[1:at]]
    child = 0

    def end(*_):
        if child:
            os.kill(child, signal.SIGTERM)
            os.waitpid(child, 0)
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while True:
        if not any(text.startswith("datagram:") for text in sys.argv[1:at]):
            select.select(listeners, [], [])
        child = start(listeners, sys.argv[at + 1 :])
        print("started", child)
        status = os.waitpid(child, 0)[1]
        child = 0
        print("ended", os.waitstatus_to_exitcode(status))
        if status:
            sys.exit(1)


main()
