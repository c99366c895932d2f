#!/usr/bin/env python3
"""onnxruntime on THREADS threads, as `edgent bench models` asks for it: one JSON object a line on stdin, one on stdout.

    onnxruntime_turns.py THREADS

    {"load": NET.onnx, "inputs": FILE, "outputs": FILE}   reads safetensors, writes what the network gives; {"nodes": […]}
    {"run": N}                                            {"ms": […]}, the time of each of N runs
    {"profile": NET.onnx, "inputs": FILE, "run": N}       {"operators": […]}, each kernel's time in each run, by its profile
"""

import json
import pathlib
import sys
import tempfile
import time

import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file


# Before and after a turn. This process has threads that spin for a while, of onnxruntime and of numpy; by then they sleep, and
# take no processor, nor half of one, from who runs next.
SETTLE_S = 0.05


def options():
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = int(sys.argv[1])
    chosen.inter_op_num_threads = 1
    chosen.log_severity_level = 3
    return chosen


def opened(path, chosen):
    return onnxruntime.InferenceSession(path, chosen, ["CPUExecutionProvider"])


def profile(order):
    with tempfile.TemporaryDirectory() as folder:
        chosen = options()
        chosen.enable_profiling = True
        chosen.profile_file_prefix = str(pathlib.Path(folder) / "profile")
        session = opened(order["profile"], chosen)
        inputs = load_file(order["inputs"])
        for _ in range(order["run"]):
            session.run(None, inputs)
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
    end = "_kernel_time"
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith(end)]
    return [{"name": event["name"].removesuffix(end), "kind": event["args"]["op_name"], "us": event["dur"]}
            for event in kernels]


def main():
    session = inputs = outputs = None
    for line in sys.stdin:
        order = json.loads(line)
        if "load" in order:
            session, inputs = opened(order["load"], options()), load_file(order["inputs"])
            outputs = [output.name for output in session.get_outputs()]
            save_file(dict(zip(outputs, session.run(outputs, inputs))), order["outputs"])
            answer = {"nodes": [node.name for node in onnx.load(order["load"], load_external_data=False).graph.node]}
        elif "profile" in order:
            answer = {"operators": profile(order)}
        else:
            times_ms = []
            time.sleep(SETTLE_S)
            for _ in range(order["run"]):
                since = time.perf_counter()
                session.run(outputs, inputs)
                times_ms.append((time.perf_counter() - since) * 1e3)
            answer = {"ms": times_ms}
            time.sleep(SETTLE_S)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
