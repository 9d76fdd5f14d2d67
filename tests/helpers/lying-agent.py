#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""lying-agent.py SOCKET AGENT-SOCKET LIE: passes requests on to a real agent, and changes some answers.

LIE: digests (of other bytes), content (one bit of what is read), short (less than was asked for), garbage (no JSON),
size (a file of 2^62 bytes), endless (more than anybody wants); later-STATUS (the second request is put off for two
seconds with that status; who asks earlier gets no more answers), never (503 to all).
"""
import http.client
import http.server
import os
import socket
import socketserver
import sys
import time

listen, agent, lie = sys.argv[1:]


requests = 0
put_off_until = 0


def status_of_refusal():
    """Of "later" and "never": what the next request is refused with, or None."""
    global requests, put_off_until
    requests += 1
    if lie == "never":
        return 503
    if lie.startswith("later-") and requests == 2:
        put_off_until = time.monotonic() + 2
    if time.monotonic() < put_off_until:
        put_off_until = put_off_until if requests == 2 else float("inf")
        return int(lie.split("-")[1]) if requests == 2 else 400
    return None


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(agent)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.real = Connection("agent")

    def address_string(self):
        return "client"

    def log_message(self, *arguments):
        pass

    def change(self, body):
        if lie == "digests" and "/digests" in self.path:
            return bytes([body[0] ^ 1]) + body[1:]
        if lie == "content" and self.command == "GET" and "/extents" in self.path and len(body) > 100:
            return body[:90] + bytes([body[90] ^ 1]) + body[91:]
        if lie == "short" and self.command == "GET" and "/extents" in self.path:
            return body[:48]
        if lie == "garbage" and self.path == "/v1/handles":
            return b"\0[[[[" * 1000
        if lie == "size" and self.path == "/v1/handles":
            return body.replace(b'"size":', b'"size":4611686018427387904,"x":')
        if lie == "endless" and self.path == "/v1/handles":
            return b" " * (8 << 20)
        return body

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        refused = status_of_refusal()
        if refused:
            self.send_response(refused)
            self.send_header("Retry-After", "2")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        headers = {"Blockmig-Session": self.headers.get("Blockmig-Session", "")}
        self.real.request(self.command, self.path, body, headers)
        answer = self.real.getresponse()
        content = self.change(answer.read())
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except BrokenPipeError:  # it was too much
            self.close_connection = True

    do_GET = do_POST = do_DELETE = handle_any


    def finish(self):
        try:
            super().finish()
        except BrokenPipeError:
            pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


os.path.exists(listen) and os.unlink(listen)
Server(listen, Handler).serve_forever()
