#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""rewriting-proxy.py ADDRESS PORT AGENT-PORT TLS-DIRECTORY (FROM TO)...

Stands between clients and an agent on the same address, over TLS on both sides, with the two certificates in that
directory.  FROM, in what either says, becomes TO, which has the same length; it must come in one piece.
"""
import socket
import ssl
import sys
import threading

address, port, agent_port, directory, *words = sys.argv[1:]
words = [word.encode() for word in words]
pairs = list(zip(words[::2], words[1::2]))


def context(protocol, name):
    made = ssl.SSLContext(protocol)
    made.load_cert_chain(f"{directory}/{name}-cert.pem", f"{directory}/{name}-key.pem")
    made.load_verify_locations(f"{directory}/ca-cert.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


to_agent = context(ssl.PROTOCOL_TLS_CLIENT, "client")
to_client = context(ssl.PROTOCOL_TLS_SERVER, "server")


def carry(source, target):
    try:
        while data := source.recv(65536):
            for before, after in pairs:
                data = data.replace(before, after)
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def serve(plain):
    try:
        client = to_client.wrap_socket(plain, server_side=True)
        agent = to_agent.wrap_socket(socket.create_connection((address, int(agent_port))), server_hostname=address)
    except OSError:
        plain.close()
        return
    threading.Thread(target=carry, args=(client, agent), daemon=True).start()
    carry(agent, client)


listener = socket.create_server((address, int(port)))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
