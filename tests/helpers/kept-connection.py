#!/usr/bin/python3 -u
# SPDX-License-Identifier: LGPL-2.1-or-later
"""kept-connection.py PORT CREDENTIALS [COMMAND...]

Asks an agent on this host over a connection, runs the command and asks again over the same one.  Prints both statuses
("closed" for none) and then the serial number of the certificate that the agent shows.
"""
import http.client
import os
import ssl
import subprocess
import sys

port, credentials, *command = sys.argv[1:]
context = ssl.create_default_context(cafile=os.path.join(credentials, "ca-cert.pem"))
context.load_cert_chain(os.path.join(credentials, "client-cert.pem"), os.path.join(credentials, "client-key.pem"))
connection = http.client.HTTPSConnection("localhost", int(port), context=context, timeout=60)
connection.connect()
connection.auto_open = 0
serial = connection.sock.getpeercert()["serialNumber"]


def ask():
    try:
        connection.request("GET", "/v1")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (http.client.HTTPException, OSError):
        return "closed"


before = ask()
if command:
    subprocess.run(command, check=True)
print(before, ask(), serial)
