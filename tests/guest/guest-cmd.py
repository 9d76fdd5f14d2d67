#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""guest-cmd.py SOCKET SECONDS COMMAND: sends one line to the test guest and prints the line it answers."""
import socket
import sys


def main():
    path, seconds, command = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(seconds)
        port.connect(path)
        port.sendall(command.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = port.recv(4096)
            if not data:
                sys.exit("the machine ended before it answered")
            answer += data
    print(answer.decode().strip())


main()
