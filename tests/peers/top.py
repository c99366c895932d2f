#!/usr/bin/env python3
"""`edgent top` in a real pseudo-terminal: it draws, follows what hosts do and how large the terminal is, takes keys, and
leaves the terminal as it was. Needs nothing but Python.

    cargo build --release --workspace
    python3 tests/peers/top.py
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import tempfile
import termios
import time

from hosts import EDGENT, EXAMPLES, build, edgent, host

PATIENCE_S = 60
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"


class Terminal:
    """A program in a terminal of its own, and what is on its screen."""

    def __init__(self, *command, rows=30, columns=120):
        self.ours, self.theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.theirs)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self.theirs, termios.TIOCSCTTY, 0)
            for end in range(3):
                os.dup2(self.theirs, end)
            os.execv(command[0], [str(word) for word in command])
        self.all, self.lines = "", []

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.ours, keys)

    def read(self, until):
        ready, _, _ = select.select([self.ours], [], [], max(until - time.monotonic(), 0))
        assert ready, f"the screen stays as it is:\n{chr(10).join(self.lines)}"
        self.all += os.read(self.ours, 1 << 16).decode()
        # A screen is drawn from its first line to what is cleared below its last.
        drawn = re.findall(r"\x1b\[H(.*?)\x1b\[J", self.all, re.DOTALL)
        self.lines = [line.removesuffix("\x1b[K") for line in drawn[-1].split("\r\n")] if drawn else []

    def wait_for(self, what, is_there):
        until = time.monotonic() + PATIENCE_S
        while not is_there(self.lines):
            self.read(until)
        print(f"ok: {what}")

    def wait_for_end(self):
        until = time.monotonic() + PATIENCE_S
        while LEAVE not in self.all:
            self.read(until)
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status
        assert self.all.count(ENTER) == self.all.count(LEAVE) == 1
        assert self.all.endswith(LEAVE), "nothing is written after the screen is left"
        assert termios.tcgetattr(self.theirs) == self.before, "the terminal is as it was"


def has(pattern):
    return lambda lines: any(re.search(pattern, line) for line in lines)


def selected(pattern):
    return has("^\x1b\\[7m" + pattern)


def main():
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        edge, edge_http = stack.enter_context(host("edge", bundle))
        device, device_http = stack.enter_context(host("device", bundle, "--edge", edge, "--deadline-ms", 5000))

        top = Terminal(EDGENT, "top", f"http://{device_http}", edge, f"http://{edge_http}")
        top.wait_for("it draws every host", lambda lines: sum("branchy-alexnet" in line for line in lines) >= 4)
        top.wait_for("the plan in force", has(r"^plan +exit \d, cut \d+, (device-only|split|edge-only), "))
        top.wait_for("the edge", has(r"^edge +connected"))
        for _ in range(2):
            edgent("infer", *EXAMPLES, "--device", device)
        top.wait_for("it follows what is asked", has(r"^requests +20, 20 answered"))
        top.wait_for("latencies", has(r"device .* \d+\.\d ms +\d+\.\d ms +5000\.0 ms"))
        top.wait_for("exits", has(r"^answers +.*exit \d: \d+ of the last 20"))
        top.type(b"\x1b[B")
        top.wait_for("an arrow chooses the next host", selected(re.escape(edge)))
        top.type(b"\x1b[B\x1b[B\x1b[A")
        top.wait_for("and the one before", selected(re.escape(edge)))
        top.resize(6, 40)
        small = lambda lines: len(lines) <= 6 and max(len(re.sub("\x1b\\[[0-9]*m", "", line)) for line in lines) <= 40
        top.wait_for("it follows the terminal's size", lambda lines: lines and small(lines))
        top.resize(30, 120)
        top.wait_for("and back", has(r"^requests"))
        top.type(b"q")
        top.wait_for_end()
        print("ok: q ends it, and the terminal is as it was")

        for how, end in (("Ctrl-C", lambda top: top.type(b"\x03")), ("SIGTERM", lambda top: os.kill(top.pid, signal.SIGTERM))):
            top = Terminal(EDGENT, "top", device)
            top.wait_for("over the link, the plan in force", has(r"^plan +exit \d, cut \d+, (device-only|split|edge-only), "))
            top.wait_for("the edge", has(r"^edge +connected"))
            top.wait_for("latencies", has(r"device .* \d+\.\d ms +\d+\.\d ms +5000\.0 ms"))
            top.wait_for("and exits", has(r"^answers +.*exit \d: \d+ of the last 20"))
            end(top)
            top.wait_for_end()
            print(f"ok: {how} ends it, and the terminal is as it was")

        third = stack.enter_context(contextlib.ExitStack())
        passing, passing_http = third.enter_context(host("edge", bundle))
        top = Terminal(EDGENT, "top", f"http://{passing_http}", passing)
        top.wait_for("a host", has("branchy-alexnet"))
        third.close()
        top.wait_for("a host that has ended is away", lambda lines: sum("away: " in line for line in lines) == 2)
        top.type(b"q")
        top.wait_for_end()


if __name__ == "__main__":
    main()
