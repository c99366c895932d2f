#!/usr/bin/env python3
"""Bars of `edgent build`, `verify`, `profile` and `push`: drawn on a terminal, and gone from it in the end; none where nobody
looks. Needs nothing but Python.

    cargo build --release --workspace
    python3 tests/peers/progress.py
"""

import contextlib
import os
import pty
import re
import subprocess
import tempfile

from hosts import EDGENT, ROOT, build, host

MARK = "\x1e"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*arguments):
    """What a command writes to a terminal, which is both its stdout and its stderr, and what stays to be read there."""
    ours, theirs = pty.openpty()
    command = [str(word) for word in (EDGENT, *arguments)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while piece := os.read(ours, 1 << 16):
            written += piece
    os.close(ours)
    assert process.wait() == 0, written.decode()
    written = written.decode()
    return written, [stays(line) for line in written.replace("\r\n", "\n").split("\n")]


def stays(line):
    """A line as it is seen in the end: what is written over is gone."""
    shown = ""
    for part in re.split(r"(\r|\x1b\[[0-9;?]*[A-Za-z])", line):
        if part == "\r":
            shown = ""  # every line that is begun anew here is cleared first
        elif not ESCAPE.fullmatch(part):
            shown += part
    return shown


def elsewhere(*arguments):
    done = subprocess.run([str(word) for word in (EDGENT, *arguments)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def check(name, what, unit, *arguments):
    """A command's bars, by what they say: seen to grow, and gone in the end."""
    written, left = on_terminal(*arguments)
    for bar in what:
        counts = re.findall(re.escape(bar) + r" \[[=> ]{30}\] ([0-9.]+) ?(\S*) of ([0-9.]+)", written)
        assert counts, f"{name}: no bar '{bar}' in {written!r}"
        assert all(bool(scale) == (unit == "bytes") for _, scale, _ in counts), counts[:3]
        if unit == "steps":
            done = [int(count) for count, _, _ in counts]
            assert done == sorted(done) and done[-1] > done[0], f"{name}: {bar} does not grow: {done}"
            assert len({total for _, _, total in counts}) == 1 and done[-1] <= int(counts[0][2]), counts
    assert not any("[=" in line or MARK in line for line in left), f"{name}: something is left of a bar: {left}"
    assert MARK not in written, f"{name}: what a confined process says to its parent is seen"
    print(f"ok: {name}: {', '.join(what)}")
    return left


def main():
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        onnx, bundle = ROOT / "models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle"
        left = check("build", ["asking every exit", "coding activations"], "steps",
                     "build", onnx, "--out", bundle, "--samples", 200)
        assert any(re.match(r"\d+ segments, \d+ cuts, 5 exits", line) for line in left), left
        left = check("verify", ["checking cuts", "answering samples", "coding inputs"], "steps", "verify", bundle)
        assert any(line.startswith("cuts ") for line in left), left
        check("profile, confined", ["measuring layers"], "steps", "profile", bundle, "--quick")
        check("profile", ["measuring layers"], "steps", "profile", "--quick")

        retrained = build("models/branchy-alexnet/retrained.onnx", f"{folder}/retrained")
        for named, more in (("on a terminal", False), ("elsewhere", True)):
            store = f"{folder}/store {named}"
            link, _ = stack.enter_context(host("edge", bundle, "--store", store))
            if not more:
                left = check("push", [f"sending to {link}"[:40]], "bytes", "push", retrained, "--to", link)
                assert any(line.startswith("branchy-alexnet:2 is in force") for line in left), left
                continue
            quiet = [("push", retrained, "--to", link), ("verify", bundle), ("build", onnx, "--out", f"{folder}/again", "--samples", 5)]
            for arguments in quiet:
                for json in ([], ["--json"]):
                    stdout, stderr = elsewhere(*arguments, *json)
                    assert not re.search(r"\r|\x1b|\x1e|\[=", stdout + stderr), (arguments, stdout, stderr)
            print("ok: no bars where nobody looks")
        written, _ = on_terminal("verify", bundle, "--json")
        assert not re.search(r"\x1b|\x1e|\[=", written), written
        print("ok: no bars with --json")


if __name__ == "__main__":
    main()
