#!/usr/bin/env python3
"""Split inference as one writes it by hand, in Python with onnxruntime and gRPC, beside two hosts of Edgent.

Both have a device and an edge, each a process of its own, the same network cut at the same place, and the same slow
link between them (`edgent relay`, in user space: the link is emulated). The peer sends the activation as it is, as
float32; Edgent is pinned to the same plan, once so and once with its codec. They take turns, and each device says
itself how long it took from the image to the answer. Prints a table; docs/split-peer.md says what was measured.

    just split-peer
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import grpc
import numpy as np
import onnx.utils
import onnxruntime
from PIL import Image

from hosts import EDGENT, EXAMPLES, ROOT, build, edgent

MODEL = "models/branchy-alexnet/branchy-alexnet.onnx"
EXIT = "exit5"
METHOD = "/split.Edge/Rest"
WORKERS = ("--workers", 1, "--threads", 1)
# So that nobody answers alone: what is compared is the way over the link.
DEADLINE_MS = 5000
LATENCY_RATIO_MAX = 0.7
MEMORY_RATIO_MAX = 0.25


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def peer_edge(part, shape):
    """Answers whoever sends an activation with the exit's scores; says on which port."""
    rest = session(part)
    name = rest.get_inputs()[0].name

    def answer(activation, _):
        values = np.frombuffer(activation, np.float32).reshape(shape)
        return rest.run(None, {name: values})[0].tobytes()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=1))
    handlers = {METHOD.split("/")[2]: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(METHOD.split("/")[1], handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


def peer_device(part, edge):
    """For each line with paths of images: their classes, and how long each took."""
    first = session(part)
    name = first.get_inputs()[0].name
    ask = grpc.insecure_channel(edge).unary_unary(METHOD)
    print("ready", flush=True)
    for line in sys.stdin:
        answers = []
        for path in json.loads(line):
            pixels = np.asarray(Image.open(io.BytesIO(pathlib.Path(path).read_bytes())).convert("RGB"))
            start = time.perf_counter()
            activation = first.run(None, {name: np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})[0]
            scores = np.frombuffer(ask(activation.tobytes()), np.float32)
            answers.append([int(scores.argmax()), (time.perf_counter() - start) * 1e3])
        print(json.dumps(answers), flush=True)


@contextlib.contextmanager
def process(*command):
    """A running program, and the first line that it prints."""
    words = [str(word) for word in command]
    running = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        line = running.stdout.readline()
        if not line:
            raise SystemExit(f"{words} ended with {running.wait()} before it was ready")
        yield running, line.split()[-1]
    finally:
        running.terminate()
        running.wait(timeout=30)


def memory_mib(pid):
    """Resident memory of a process, and its proportional share: of what several have, its part."""
    files = [pathlib.Path(f"/proc/{pid}/{name}").read_text() for name in ("status", "smaps_rollup")]
    found = [re.search(rf"^{key}:\s+(\d+) kB", text, re.M) for key, text in zip(("VmRSS", "Pss"), files)]
    return [int(match.group(1)) / 1024 for match in found]


class Peer:
    def __init__(self, stack, link, cut_at, shape, folder):
        parts = [str(folder / "device.onnx"), str(folder / "edge.onnx")]
        onnx.utils.extract_model(str(ROOT / MODEL), parts[0], ["image"], [cut_at])
        onnx.utils.extract_model(str(ROOT / MODEL), parts[1], [cut_at], [EXIT])
        me = [sys.executable, __file__]
        edge, address = stack.enter_context(process(*me, "--peer-edge", parts[1], "--shape", json.dumps(shape)))
        self.device, _ = stack.enter_context(process(*me, "--peer-device", parts[0], "--edge", link(address)))
        self.pids = [self.device.pid, edge.pid]

    def ask(self, images, _):
        print(json.dumps(images), file=self.device.stdin, flush=True)
        return json.loads(self.device.stdout.readline())


class Ours:
    def __init__(self, stack, link, bundle, cut, classes):
        self.cut, self.classes = cut, classes
        host = [ROOT / "target/release/edgent-host", "--listen", "127.0.0.1:0", "--model", bundle, *WORKERS]
        edge, address = stack.enter_context(process(*host, "--role", "edge"))
        device, self.address = stack.enter_context(
            process(*host, "--role", "device", "--edge", link(address), "--deadline-ms", DEADLINE_MS))
        self.pids = [device.pid, edge.pid]

    def ask(self, images, codec):
        edgent("pin", "--to", self.address, "--exit", EXIT, "--cut", self.cut, "--codec", codec)
        answers = edgent("infer", *images, "--device", self.address)["answers"]
        alone = [answer for answer in answers if answer["cut"] != self.cut or answer["exit"] != EXIT]
        if alone:
            raise SystemExit(f"not answered by the plan that was pinned: {alone[0]}")
        return [[self.classes.index(answer["label"]), answer["latency_ms"]] for answer in answers]


def compare(arguments):
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = build(MODEL, folder / "bundle")
        inspected = edgent("inspect", bundle)
        path = next(exit["path"] for exit in inspected["exits"] if exit["name"] == EXIT)
        before = inspected["segments"][path[arguments.cut - 1]]
        cut_at = f"/{before['name']}_output_0"
        shape = next(tensor["dims"] for tensor in inspected["tensors"] if tensor["name"] == cut_at)
        classes = re.search(r"^classes = (\[.*\])$", (ROOT / "models/branchy-alexnet/model.toml").read_text(), re.M)

        def link(to):
            command = [EDGENT, "relay", "--to", to, "--rate-bps", arguments.rate_bps, "--delay-ms", arguments.delay_ms]
            return stack.enter_context(process(*command))[1]

        peer = Peer(stack, link, cut_at, shape, folder)
        ours = Ours(stack, link, bundle, arguments.cut, json.loads(classes.group(1)))
        sides = {"Python, onnxruntime, gRPC": (peer, None), f"Edgent, {arguments.codec}": (ours, arguments.codec),
                 "Edgent, raw": (ours, "raw")}
        images, took_ms = [str(path) for path in EXAMPLES], {name: [] for name in sides}
        for round in range(arguments.rounds + 1):
            seen = {}
            for name, (side, codec) in sides.items():
                answers = side.ask(images, codec)
                seen[name] = [label for label, _ in answers]
                # The first round is for warming up.
                if round:
                    took_ms[name] += [ms for _, ms in answers]
            if len({json.dumps(labels) for labels in seen.values()}) > 1:
                raise SystemExit(f"they do not answer the same: {seen}")
        rows = [{"name": name, "latency_ms": statistics.median(took_ms[name]),
                 "memory_mib": [memory_mib(pid) for pid in side.pids]} for name, (side, _) in sides.items()]
    return {"cut_at": cut_at, "activation_bytes": before["output_bytes"], "rate_bps": arguments.rate_bps,
            "delay_ms": arguments.delay_ms, "answers": arguments.rounds * len(images), "rows": rows}


def show(report):
    print(f"cut at {report['cut_at']}, {report['activation_bytes']} bytes as they are; the link, emulated: "
          f"{report['rate_bps'] / 1e6:g} Mbit/s, {report['delay_ms']} ms one way; {report['answers']} answers each")
    print(f"{'':<27} {'median ms':>9} {'ratio':>6}  {'device RSS / PSS MiB':>20}  {'edge RSS / PSS MiB':>20} {'ratio':>6}")
    resident = lambda row: sum(rss for rss, _ in row["memory_mib"])
    peer = report["rows"][0]
    for row in report["rows"]:
        latency, memory = row["latency_ms"] / peer["latency_ms"], resident(row) / resident(peer)
        device, edge = (f"{rss:.1f} / {pss:.1f}" for rss, pss in row["memory_mib"])
        print(f"{row['name']:<27} {row['latency_ms']:>9.2f} {latency:>6.2f}  {device:>20}  {edge:>20} {memory:>6.2f}")
    ours = report["rows"][1]
    for what, ratio, most in [("latency", ours["latency_ms"] / peer["latency_ms"], LATENCY_RATIO_MAX),
                              ("resident memory", resident(ours) / resident(peer), MEMORY_RATIO_MAX)]:
        print(f"{what}: {ratio:.2f} x, {'within' if ratio <= most else 'MISSES'} the goal of {most}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="of ten images each, for each side in turn")
    parser.add_argument("--cut", type=int, default=1, help="how many segments the device runs")
    parser.add_argument("--codec", default="u8-lz4", help="of Edgent, beside raw")
    parser.add_argument("--rate-bps", type=int, default=20_000_000)
    parser.add_argument("--delay-ms", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    for hidden in ("--peer-edge", "--peer-device", "--shape", "--edge"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer_edge:
        return peer_edge(arguments.peer_edge, json.loads(arguments.shape))
    if arguments.peer_device:
        return peer_device(arguments.peer_device, arguments.edge)
    report = compare(arguments)
    print(json.dumps(report)) if arguments.json else show(report)


if __name__ == "__main__":
    main()
