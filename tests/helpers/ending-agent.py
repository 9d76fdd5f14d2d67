#!/usr/bin/python3 -u
# SPDX-License-Identifier: LGPL-2.1-or-later
"""ending-agent.py cut|whole SOCKET PID HANDLE STREAM FILE

Asks an agent for three things and tells it to end meanwhile.  Of a request to write the two frames in STREAM into the
empty FILE, which HANDLE stands for, the first is sent before, and the rest after ("whole") or never ("cut").  Prints
what becomes of each, one a line.
"""
import os
import signal
import socket
import sys
import time


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(60)
    connection.connect(path)
    return connection


def head(method, path, length=0):
    return b"%s %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (method, path, length)


def answer(connection):
    """The status and the names of the headers; "nothing" if the connection ends instead."""
    text = b""
    while b"\r\n\r\n" not in text:
        try:
            part = connection.recv(65536)
        except ConnectionError:
            part = b""
        if not part:
            return "nothing"
        text += part
    lines = text.split(b"\r\n\r\n")[0].decode().split("\r\n")
    wanted = [line.lower() for line in lines[1:] if line.lower().startswith(("connection:", "retry-after:"))]
    return " ".join([lines[0].split()[1], *sorted(wanted)])


def refused_at_last(path):
    """Nobody is let in, from some moment on."""
    for _ in range(1000):
        try:
            connect(path).close()
        except (ConnectionError, FileNotFoundError):
            return "refused"
        time.sleep(0.02)
    return "let in"


def main():
    how, path, pid, handle, stream, file = sys.argv[1:]
    with open(stream, "rb") as frames:
        content = frames.read()
    most = len(content) * 3 // 4
    slow, kept = connect(path), connect(path)
    slow.sendall(head(b"POST", b"/v1/handles/%s/extents" % handle.encode(), len(content)) + content[:most])
    kept.sendall(head(b"GET", b"/v1"))
    print("before:", answer(kept))
    while os.stat(file).st_size == 0:
        time.sleep(0.02)
    os.kill(int(pid), signal.SIGTERM)
    print("new:", refused_at_last(path))
    kept.sendall(head(b"GET", b"/v1"))
    print("kept:", answer(kept))
    if how == "whole":
        slow.sendall(content[most:])
    print("under way:", answer(slow))


main()
