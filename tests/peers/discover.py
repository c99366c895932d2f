#!/usr/bin/env python3
"""Edges that announce themselves, and devices that find them, on a network of two machines: two network namespaces of this
one, joined by a cable. Another implementation of multicast DNS listens, and lies. Needs root.

    cargo build --release --workspace
    target/discover/bin/python tests/peers/discover.py
"""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from hosts import BUILT, EDGENT, EXAMPLES, build

PATIENCE_S = 60
ALL_S = 300
SERVICE = "_edgent._tcp.local."
EDGE, DEVICE = "10.77.0.1", "10.77.0.2"


def run(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


class Machine:
    """A network namespace, and a key of its own."""

    def __init__(self, stack, folder, name):
        self.namespace, self.identity = f"edgent-{os.getpid()}-{name}", f"{folder}/{name}"
        run("ip", "netns", "add", self.namespace)
        stack.callback(run, "ip", "netns", "del", self.namespace)
        self.fingerprint = self.edgent("id", "--identity", self.identity)["fingerprint"]

    def command(self, *words):
        return ["ip", "netns", "exec", self.namespace, *map(str, words)]

    def edgent(self, *words):
        return json.loads(run(*self.command(EDGENT, *words, "--json")))

    def knows(self, other, name, may):
        self.edgent("pair", "--identity", self.identity, "--fingerprint", other.fingerprint, "--name", name, "--may", may)

    @contextlib.contextmanager
    def host(self, role, bundle, *more, identity=None):
        own = ["--role", role, "--model", bundle, "--identity", identity or self.identity, *more]
        with open(f"{self.identity}.log", "a") as log:
            process = subprocess.Popen(self.command(BUILT / "edgent-host", *own), stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield re.fullmatch(r"edgent-host \w+ listening on (\S+)\n", process.stdout.readline()).group(1)
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0, f"the {role} ended with {process.returncode}"

    @contextlib.contextmanager
    def python(self, *words):
        """This script as a part that is played on that machine."""
        process = subprocess.Popen(self.command(sys.executable, __file__, *words), stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def cable(one, other):
    run("ip", "link", "add", "cable", "netns", one.namespace, "type", "veth", "peer", "name", "cable", "netns",
        other.namespace)
    for machine, address in ((one, EDGE), (other, DEVICE)):
        run("ip", "-n", machine.namespace, "addr", "add", f"{address}/24", "dev", "cable")
        run("ip", "-n", machine.namespace, "link", "set", "cable", "up")
        run("ip", "-n", machine.namespace, "link", "set", "lo", "up")


def wait_for(what, look):
    until = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < until, what
        time.sleep(0.1)  # between two looks from outside; nothing tells
    print(f"ok: {what}", flush=True)
    return seen


def announce(name, address, port, key):
    """What a foreign program announces, until nobody wants it any more."""
    import socket

    from zeroconf import ServiceInfo, Zeroconf

    zeroconf = Zeroconf(interfaces=[address])
    addresses = [socket.inet_aton(address)]
    info = ServiceInfo(SERVICE, f"{name}.{SERVICE}", int(port), properties={"key": key}, server=f"{name}.local.",
                       addresses=addresses)
    zeroconf.register_service(info)
    print("announced", flush=True)
    sys.stdin.read()
    zeroconf.close()


def browse(address):
    """What a foreign program finds: a line for each announcement."""
    from zeroconf import ServiceBrowser, Zeroconf

    class Listener:
        def add_service(self, zeroconf, kind, name):
            info = zeroconf.get_service_info(kind, name)
            said = {key.decode(): value.decode() for key, value in info.properties.items()}
            print(json.dumps({"name": name, "addresses": info.parsed_addresses(), "port": info.port, **said}), flush=True)

        def update_service(self, *_):
            pass

        def remove_service(self, _zeroconf, _kind, name):
            print(json.dumps({"gone": name}), flush=True)

    zeroconf = Zeroconf(interfaces=[address])
    ServiceBrowser(zeroconf, SERVICE, Listener())
    sys.stdin.read()
    zeroconf.close()


def edges(device, address):
    return {edge["address"]: edge for edge in device.edgent("status", address)["edges"]}


def main():
    signal.alarm(ALL_S)  # who waits for a line that does not come is ended
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        left, right = (Machine(stack, folder, name) for name in ("left", "right"))
        cable(left, right)
        left.knows(right, "right", "ask,read")
        right.knows(left, "left", "serve")

        listener = stack.enter_context(right.python("browse", DEVICE))
        on_device = ["--listen", "127.0.0.1:0", "--discover", "--deadline-ms", 5000]
        device = stack.enter_context(right.host("device", bundle, *on_device))
        wait_for("a device looks for those whom it knows", lambda: not edges(right, device)["left@discovered"]["connected"])

        # A liar: the edge's key, and the address of a host that has another.
        stranger = pathlib.Path(f"{folder}/stranger")
        with contextlib.ExitStack() as lie:
            trap = lie.enter_context(left.host("edge", bundle, "--listen", f"{EDGE}:0", identity=stranger))
            claim = ["announce", "liar", EDGE, trap.rpartition(":")[2], left.fingerprint]
            liar = lie.enter_context(left.python(*claim))
            assert liar.stdout.readline() == "announced\n"
            wait_for("a liar is found", lambda: any(found["name"] == "liar" for found in right.edgent(
                "discover", "--for-s", 1, "--identity", right.identity)["found"]))
            log = pathlib.Path(f"{right.identity}.log")
            wait_for("and not believed", lambda: f"{trap} shows the key" in log.read_text())
            assert not edges(right, device)["left@discovered"]["connected"]

            with left.host("edge", bundle, "--listen", f"{EDGE}:0", "--announce") as edge:
                port = int(edge.rpartition(":")[2])
                wait_for("the edge is found and connected, the liar notwithstanding",
                         lambda: edges(right, device)["left@discovered"]["in_force"])
                answers = right.edgent("infer", *EXAMPLES[:3], "--device", device)["answers"]
                assert len(answers) == 3 and all(answer["deadline_met"] for answer in answers), answers
                found = {one["name"]: one for one in right.edgent(
                    "discover", "--for-s", 2, "--identity", right.identity)["found"]}
                (mine,) = [one for name, one in found.items() if name != "liar"]
                assert mine["addresses"] == [f"{EDGE}:{port}"] and mine["fingerprint"] == left.fingerprint, found
                assert mine["known_as"] == "left" and mine["may_serve"], found
                (strange,) = [one for one in left.edgent("discover", "--for-s", 2, "--identity", stranger)["found"]
                              if one["name"] != "liar"]
                assert strange["known_as"] is None and not strange["may_serve"], strange
                print("ok: edgent discover tells who is known")
                heard = json.loads(listener.stdout.readline())
                while heard["port"] != port:
                    heard = json.loads(listener.stdout.readline())
                assert heard["addresses"] == [EDGE] and heard["key"] == left.fingerprint, heard
                print("ok: another implementation finds it, too")
            wait_for("an edge that ends is away", lambda: not edges(right, device)["left@discovered"]["connected"])
            gone = ""
            while not gone or gone.startswith("liar"):
                gone = json.loads(listener.stdout.readline()).get("gone", "")
            print("ok: and has said so")
        with left.host("edge", bundle, "--listen", "0.0.0.0:0", "--announce"):
            wait_for("it is found again, at another port", lambda: edges(right, device)["left@discovered"]["in_force"])


if __name__ == "__main__":
    {"announce": announce, "browse": browse}[sys.argv[1]](*sys.argv[2:]) if sys.argv[1:] else main()
