#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""terminal.py COLUMNS COMMAND...: runs it on a terminal and prints each write to it as "SECONDS repr".
$PRESS: after so many seconds Ctrl-C is pressed."""
import fcntl, os, pty, struct, sys, termios, time
pid, fd = pty.fork()
if pid == 0:
    fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack("HHHH", 25, int(sys.argv[1]), 0, 0))
    os.execvp(sys.argv[2], sys.argv[2:])
start = time.monotonic()
press = float(os.environ.get("PRESS", "1e9"))
while True:
    if time.monotonic() - start > press:
        os.write(fd, b"\x03")
        press = 1e9
    try:
        data = os.read(fd, 65536)
    except OSError:
        break
    if not data:
        break
    print("%.3f %r" % (time.monotonic() - start, data.decode()))
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
