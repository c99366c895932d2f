#!/usr/bin/env python3
"""A device and an edge with a link between them that the system itself makes slow: two network namespaces and a token
bucket with a deep queue, as a modem has. An activation that is under way for longer than a peer may be silent is no
reason to give the connection up; an edge that is gone is. Needs root.

    cargo build --release --workspace && python3 tests/peers/slow_link.py
"""

import contextlib
import os
import re
import subprocess
import tempfile
import time

from hosts import BUILT, EXAMPLES, build, edgent

PATIENCE_S = 60
NAMESPACE, LINK = f"edgent-{os.getpid()}-slow", "edgent-slow"
HERE, THERE = "10.78.0.1", "10.78.0.2"
# Of branchy-alexnet: an activation of 32 KiB crosses, which takes five seconds.
PLAN = ["--exit", "exit4", "--cut", 4, "--codec", "raw"]
SLOW, LEAST_MS = "50kbit", 4_000


def run(*command):
    subprocess.run(list(map(str, command)), check=True)


@contextlib.contextmanager
def host(role, bundle, *more, within=()):
    command = [*within, BUILT / "edgent-host", "--role", role, "--model", bundle, "--insecure", *more]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        yield re.fullmatch(r"edgent-host \w+ listening on (\S+)\n", process.stdout.readline()).group(1)
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0, f"the {role} ended with {process.returncode}"


def until(what, condition):
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < PATIENCE_S, f"never: {what}"


def main():
    with contextlib.ExitStack() as stack:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", stack.enter_context(tempfile.TemporaryDirectory()))
        run("ip", "netns", "add", NAMESPACE)
        stack.callback(run, "ip", "netns", "del", NAMESPACE)
        run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "cable", "netns", NAMESPACE)
        run("ip", "addr", "add", f"{HERE}/24", "dev", LINK)
        run("ip", "link", "set", LINK, "up")
        run("ip", "-n", NAMESPACE, "addr", "add", f"{THERE}/24", "dev", "cable")
        run("ip", "-n", NAMESPACE, "link", "set", "cable", "up")
        within = ["ip", "netns", "exec", NAMESPACE]
        edge = stack.enter_context(host("edge", bundle, "--listen", f"{THERE}:0", within=within))
        device = stack.enter_context(
            host("device", bundle, "--listen", "127.0.0.1:0", "--edge", edge, "--deadline-ms", 30_000))

        def ask():
            return edgent("infer", "--device", device, EXAMPLES[0])["answers"][0]

        def edge_is_there():
            return edgent("status", device)["edges"][0]["connected"]

        until("by the edge", lambda: ask()["degraded"] is None and edge_is_there())
        edgent("pin", "--to", device, *PLAN)
        # By now the system takes much at once.
        for _ in range(5):
            assert ask()["placement"] == "split"

        run("tc", "qdisc", "add", "dev", LINK, "root", "tbf", "rate", SLOW, "burst", 3_000, "latency", "60s")
        answer = ask()
        assert answer["placement"] == "split" and answer["degraded"] is None, answer
        assert answer["latency_ms"] > LEAST_MS, f"no slow link: {answer}"
        assert edge_is_there()
        print(f"ok: an activation was under way for {answer['latency_ms'] / 1e3:.1f} s, and its answer came")

        run("ip", "-n", NAMESPACE, "link", "set", "cable", "down")
        until("the edge is given up", lambda: not edge_is_there())
        assert ask()["placement"] == "device-only"
        print("ok: an edge that is gone is given up")


if __name__ == "__main__":
    main()
