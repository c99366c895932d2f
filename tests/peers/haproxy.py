#!/usr/bin/env python3
"""Devices behind Debian's HAProxy with packaging/haproxy.cfg, while its three edges are killed, frozen, drained and added.

    cargo build --release --workspace
    SECONDS=300 DEVICES=20 REQUESTS_PER_S=50 python3 tests/peers/haproxy.py

Each request must be answered, and rightly; each edge that is back must get work again. How soon devices are back with an
edge and how even the load is, is printed beside its goal; with TIMED=1, on a machine that does nothing else, it must be kept.
"""

import collections
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

from hosts import EDGENT, EXAMPLES, ROOT, build

SECONDS = float(os.environ.get("SECONDS", 300))
DEVICES = int(os.environ.get("DEVICES", 20))
REQUESTS_PER_S = float(os.environ.get("REQUESTS_PER_S", 50))
TIMED = os.environ.get("TIMED") == "1"
PATIENCE_S = 60
FAIL_OVER_MAX_S, LOAD_OFF_MAX = 2.0, 0.2
# Of all the seconds: so long devices keep a connection, and so long they are given to spread.
RECONNECT_SHARE, SPREAD_SHARE = 0.08, 0.12
# A device that hardly computes, so that its plan has the edge.
SLOWDOWN = 200
DEADLINE_MS = 300

Answer = collections.namedtuple("Answer", "asked_s answered_s fault placement degraded is_in_time")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Host:
    """An `edgent-host` that can be ended in every way, and started again at the same addresses."""

    def __init__(self, role, bundle, *more):
        self.link, self.http, self.agent = (f"127.0.0.1:{free_port()}" for _ in range(3))
        self.arguments = [ROOT / "target/release/edgent-host", "--role", role, "--model", bundle, "--listen", self.link,
                          "--http", self.http, "--agent-check", self.agent, *map(str, more)]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def wait_until_ready(self):
        line = self.process.stdout.readline()
        assert "listening on" in line, f"{self.arguments} said {line!r}"

    def signal(self, which):
        self.process.send_signal(which)

    def end(self):
        self.signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, "a host did not end in good order"

    def told(self):
        """What it says of itself, for whoever looks for a fault."""
        return subprocess.run([EDGENT, "status", self.link], stdout=subprocess.PIPE, text=True).stdout

    def parts(self):
        """How many parts of networks it has run for devices."""
        connection = http.client.HTTPConnection(self.http, timeout=10)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        return int(re.search(r'edgent_parts_total\{outcome="done"\} (\d+)', text)[1])


class Asker(threading.Thread):
    """Asks a device again and again, and keeps what came of it."""

    def __init__(self, device, place, body, headers, expected):
        super().__init__(daemon=True)
        self.device, self.body, self.headers, self.expected = device, body, headers, expected
        self.pause_s, self.answers, self.is_ending = DEVICES / REQUESTS_PER_S, [], threading.Event()
        self.begin_s = time.monotonic() + self.pause_s * place / DEVICES

    def run(self):
        next_s = self.begin_s
        while not self.is_ending.wait(max(0, next_s - time.monotonic())):
            self.answers.append(self.ask())
            next_s = max(next_s + self.pause_s, time.monotonic() - self.pause_s)

    def ask(self):
        asked_s = time.monotonic()
        try:
            connection = http.client.HTTPConnection(self.device.http, timeout=30)
            connection.request("POST", "/v2/models/branchy-alexnet/infer", self.body, self.headers)
            response = connection.getresponse()
            said = json.loads(response.read())
            connection.close()
            told = said.get("parameters", {})
            fault = said.get("error") or (None if told["class"] == self.expected else f"wrong: {told['class']}")
        except (OSError, http.client.HTTPException) as error:
            told, fault = {}, repr(error)
        answered_s = time.monotonic()
        return Answer(asked_s, answered_s, fault, told.get("placement"), told.get("degraded"), told.get("deadline_met"))

    def by_edge_since(self, since_s):
        """When the first answer was there that was asked for since then and is an edge's."""
        later = [a for a in self.answers if a.asked_s >= since_s and a.placement in ("split", "edge-only") and not a.degraded]
        return later[0].answered_s if later else None


def balancer_config(edges):
    """The example, with this run's addresses in the place of its own."""
    text = (ROOT / "packaging/haproxy.cfg").read_text()
    address = f"127.0.0.1:{free_port()}"
    text = text.replace("127.0.0.1:7400", address)
    for number, edge in enumerate(edges, 1):
        for ours, theirs in [(f"127.0.0.1:740{number}", edge.link), (f"port 800{number}", f"port {edge.http.split(':')[1]}"),
                             (f"agent-port 900{number}", f"agent-port {edge.agent.split(':')[1]}")]:
            assert text.count(ours) == 1, ours
            text = text.replace(ours, theirs)
    return address, text


def question():
    """The example picture as the protocol's bytes behind JSON."""
    from PIL import Image
    import numpy

    pixels = numpy.asarray(Image.open(EXAMPLES[0]).convert("RGB")).transpose(2, 0, 1).tobytes()
    head = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 3, 64, 64],
                                   "parameters": {"binary_data_size": len(pixels)}}]}).encode()
    return head + pixels, {"Inference-Header-Content-Length": str(len(head))}, EXAMPLES[0].stem


class Run:
    def __init__(self, edges, askers):
        self.edges, self.askers, self.missed, self.begin_s = edges, askers, [], time.monotonic()

    def say(self, text):
        print(f"{time.monotonic() - self.begin_s:6.1f} s  {text}", flush=True)

    def goal(self, what, value, most, unit):
        kept = value <= most
        self.say(f"{what}: {value:.2f}{unit} (goal {most:.2f}{unit}: {'kept' if kept else 'MISSED'})")
        if not kept:
            self.missed.append(what)

    def wait(self, share):
        time.sleep(SECONDS * share)

    def fail_over(self, what, since_s):
        """Waits until each device is with an edge again."""
        end_s = time.monotonic() + PATIENCE_S
        while None in (back := [asker.by_edge_since(since_s) for asker in self.askers]):
            if time.monotonic() > end_s:
                stuck = self.askers[back.index(None)]
                raise AssertionError(f"{what}: not back with an edge after {PATIENCE_S} s: {stuck.device.told()}; {stuck.answers[-1]}")
            time.sleep(0.05)
        self.goal(f"{what}: every device has an edge's answer after", max(back) - since_s, FAIL_OVER_MAX_S, " s")

    def load(self, what):
        """How much each edge does while nothing happens."""
        self.wait(SPREAD_SHARE)
        before = [edge.parts() for edge in self.edges]
        self.wait(SPREAD_SHARE)
        done = [edge.parts() - earlier for edge, earlier in zip(self.edges, before)]
        assert all(done), f"{what}: an edge did nothing: {done}"
        mean = sum(done) / len(done)
        self.goal(f"{what}: parts by edge {done}, off the mean by", max(abs(n - mean) for n in done) / mean, LOAD_OFF_MAX, "")


def main():
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        hosts, balancer = [], None
        try:
            edges = [Host("edge", bundle) for _ in range(3)]
            hosts += edges
            for edge in edges:
                edge.wait_until_ready()
            address, text = balancer_config(edges)
            config = pathlib.Path(folder) / "haproxy.cfg"
            config.write_text(text)
            balancer = subprocess.Popen(["haproxy", "-db", "-q", "-f", config], stderr=subprocess.DEVNULL)
            for _ in range(DEVICES):
                hosts.append(Host("device", bundle, "--edge", address, "--reconnect-s", max(1.0, SECONDS * RECONNECT_SHARE),
                                  "--emulate-slowdown", SLOWDOWN, "--deadline-ms", DEADLINE_MS))
                hosts[-1].wait_until_ready()
            devices = hosts[len(edges):]
            body, headers, expected = question()
            askers = [Asker(device, place, body, headers, expected) for place, device in enumerate(devices)]
            for asker in askers:
                asker.start()
            observe(edges, askers)
            for host in hosts:
                host.end()
        finally:
            for host in hosts:
                host.process.kill()
            if balancer:
                balancer.kill()


def observe(edges, askers):
    run = Run(edges, askers)
    end_s = time.monotonic() + PATIENCE_S
    while None in [asker.by_edge_since(run.begin_s) for asker in askers]:
        assert time.monotonic() < end_s, "a device never came to an edge"
        time.sleep(0.1)
    run.say(f"{len(askers)} devices have an edge")
    began_s = time.monotonic()
    run.load("at first")

    edges[0].signal(signal.SIGKILL)
    run.fail_over("one killed", time.monotonic())
    edges[0].process.wait()
    edges[0].start()
    edges[0].wait_until_ready()
    run.load("one added")

    edges[1].signal(signal.SIGSTOP)
    run.fail_over("one frozen", time.monotonic())
    edges[1].signal(signal.SIGCONT)
    run.load("it goes on")

    since_s = time.monotonic()
    edges[2].end()
    run.fail_over("one drained", since_s)
    edges[2].start()
    edges[2].wait_until_ready()
    run.load("it is back")

    for asker in askers:
        asker.is_ending.set()
    for asker in askers:
        asker.join(timeout=60)
    answers = [answer for asker in askers for answer in asker.answers if answer.asked_s >= began_s]
    lost = [answer.fault for answer in answers if answer.fault]
    by_edge = sum(answer.placement in ("split", "edge-only") for answer in answers) / len(answers)
    late = sum(answer.is_in_time is False for answer in answers)
    degraded = sum(bool(answer.degraded) for answer in answers)
    run.say(f"{len(answers)} requests, {len(lost)} lost or wrong, {late} late, {degraded} degraded, {by_edge:.1%} by an edge")
    assert not lost, f"lost: {collections.Counter(lost)}"
    assert not (TIMED and run.missed), f"missed: {run.missed}"
    print(f"{len(answers)} passed, 0 failed")


if __name__ == "__main__":
    main()
