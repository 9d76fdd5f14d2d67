#!/usr/bin/python3 -u
# SPDX-License-Identifier: LGPL-2.1-or-later
"""slow-clients.py PORT CREDENTIALS DATASTORE FILE STREAM PATIENCE

Clients that are slow in every way, all at once, of an agent on this host with that patience; each says in a line
whether it was cut off.  FILE in DATASTORE is larger than what the kernel holds on its way; STREAM has frames for a file
"slow.raw" that is made there.
"""
import json
import os
import socket
import ssl
import sys
import threading
import time

port, credentials, datastore, name, stream, patience = sys.argv[1:]
port, patience = int(port), float(patience)
with open(stream, "rb") as frames:
    frames = frames.read()
context = ssl.create_default_context(cafile=os.path.join(credentials, "ca-cert.pem"))
context.load_cert_chain(os.path.join(credentials, "client-cert.pem"), os.path.join(credentials, "client-key.pem"))
LONGEST = 60  # then somebody else has to do something


def plain():
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(LONGEST)
    connection.connect(("127.0.0.1", port))
    return connection


def secure():
    return context.wrap_socket(plain(), server_hostname="localhost")


def head(method, path, length=0):
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


def answer(connection):
    """Status and body; None if there is none."""
    text = b""
    while b"\r\n\r\n" not in text:
        part = connection.recv(65536)
        if not part:
            return None
        text += part
    first, body = text.split(b"\r\n\r\n", 1)
    length = next(int(line.split(b":")[1]) for line in first.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return None
        body += part
    return int(first.split()[1]), body


def open_file(connection, path, mode):
    body = json.dumps({"datastore": datastore, "path": path, "mode": mode}).encode()
    connection.sendall(head("POST", "/v1/handles", len(body)) + body)
    return json.loads(answer(connection)[1])["handle"]


def trickle(connection, content, piece, pause):
    """Until all is sent."""
    for at in range(0, len(content), piece):
        connection.sendall(content[at : at + piece])
        time.sleep(pause)


def silent():
    return plain().recv(1) == b""


def silent_after_the_handshake():
    return secure().recv(1) == b""


def slow_head():
    trickle(secure(), head("GET", "/v1") + b" " * 10000, 1, patience / 20)


def slow_body():
    connection = secure()
    handle = open_file(connection, "slow-body.raw", "create")
    connection.sendall(head("POST", f"/v1/handles/{handle}/extents", len(frames)))
    trickle(connection, frames, 1, patience / 20)


def unread_answer():
    connection = secure()
    handle = open_file(connection, name, "read")
    connection.sendall(head("GET", f"/v1/handles/{handle}/extents?offset=0&length={16 << 20}"))
    connection.recv(1)
    time.sleep(2 * patience)
    return answer(connection) is None


def sparing_answer():
    """Takes a few bytes of the answer at a time."""
    connection = secure()
    handle = open_file(connection, name, "read")
    connection.sendall(head("GET", f"/v1/handles/{handle}/extents?offset=0&length={16 << 20}"))
    for _ in range(40):
        if not connection.recv(1):
            return True
        time.sleep(patience / 20)
    return answer(connection) is None


def slow_but_sure():
    """Some KiB at a time, for longer than the patience."""
    connection = secure()
    handle = open_file(connection, "slow.raw", "create")
    connection.sendall(head("POST", f"/v1/handles/{handle}/extents", len(frames)))
    trickle(connection, frames, len(frames) // 20 + 1, patience / 10)
    return answer(connection)[0] != 200


def seldom():
    """Keeps its connection between two requests."""
    connection = secure()
    connection.sendall(head("GET", "/v1"))
    answer(connection)
    time.sleep(2 * patience)
    connection.sendall(head("GET", "/v1"))
    return answer(connection)[0] != 200


def try_one(client):
    begin = time.monotonic()
    try:
        cut = client()
    except (ConnectionError, ssl.SSLError, TimeoutError) as error:
        cut = not isinstance(error, TimeoutError)
    # In one piece: the clients are threads.
    line = f"{client.__name__} {'cut' if cut else 'served'} {time.monotonic() - begin:.1f}\n"
    os.write(sys.stdout.fileno(), line.encode())


threads = [
    threading.Thread(target=try_one, args=(client,))
    for client in (silent, silent_after_the_handshake, slow_head, slow_body, unread_answer, sparing_answer, slow_but_sure, seldom)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
