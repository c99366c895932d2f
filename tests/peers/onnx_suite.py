#!/usr/bin/env python3
"""The node tests of the `onnx` package through Edgent's import and sandbox.

Each test is a network of one operator, mostly, with inputs and the outputs that the ONNX reference gives for them.
Many hand in as inputs what a real network has as constants (a shape, axes): such a test is run once more with its
whole-number inputs as constants, under its name and `.pinned`.

    onnx_suite.py            fails if a test of onnx_passes.txt does not pass, or a test fails that is not known to
    onnx_suite.py --grow     adds the tests that pass to onnx_passes.txt, none is ever taken out; and takes those that
                             no longer fail out of onnx_failures.txt, none is ever added

Elements of types that have no name in wasi:nn are given and compared in the wider one in which they cross.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import warnings

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PASSES = pathlib.Path(__file__).with_name("onnx_passes.txt")
FAILURES = pathlib.Path(__file__).with_name("onnx_failures.txt")
WIDER = {"bool": np.uint8, "int8": np.int32, "int16": np.int32, "uint16": np.int32, "uint32": np.int64}


def tensors(protos, values):
    """Those values that can cross, by their names, in the type in which they do; the first dimension counts inputs."""
    named = {}
    for proto, value in zip(protos, values):
        if isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        if value is None or isinstance(value, (list, dict)):
            continue
        value = np.asarray(value)
        if value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            value = value.astype(WIDER.get(value.dtype.name, value.dtype))
            named[proto.name] = np.ascontiguousarray(value[np.newaxis])
    return named


def pinned(model, inputs):
    """The same test with its whole-number inputs as constants; none if it has none, or nothing else."""
    constants = [(p, v) for p, v in zip(model.graph.input, inputs)
                 if isinstance(v, np.ndarray) and v.dtype in (np.int64, np.int32, np.bool_)]
    if not constants or len(constants) == len(inputs):
        return None
    model = onnx.ModelProto.FromString(model.SerializeToString())
    names = {proto.name for proto, _ in constants}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, proto.name) for proto, value in constants)
    kept = [proto for proto in model.graph.input if proto.name not in names]
    model.graph.ClearField("input")
    model.graph.input.extend(kept)
    return model


def write(folder, name, model, values, tolerance):
    case = folder / name
    case.mkdir(parents=True)
    (case / "model.onnx").write_bytes(model.SerializeToString())
    save_file(values or {"none": np.zeros(1, np.uint8)}, case / "values.safetensors")
    (case / "tolerance.json").write_text(json.dumps(tolerance))


def write_all(folder):
    """Every test as a folder; the operators of each, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    operators = {}
    for test in load_model_tests(kind="node"):
        model = test.model
        inputs, outputs = test.data_sets[0]
        values = {**tensors(model.graph.input, inputs), **tensors(model.graph.output, outputs)}
        tolerance = {"difference": test.atol, "share": test.rtol}
        variants = {test.name: model, f"{test.name}.pinned": pinned(model, inputs)}
        for name, variant in variants.items():
            if variant is not None:
                write(folder, name, variant, values, tolerance)
                operators[name] = sorted({node.op_type for node in variant.graph.node})
    return operators


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/peers/onnx-suite")
    parser.add_argument("--grow", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    operators = write_all(arguments.folder)
    command = [ROOT / "target/release/edgent", "bench", "conformance", arguments.folder, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"the program ended with {done.returncode}")
    cases = {case["name"]: case for case in json.loads(done.stdout)["cases"]}
    verdict = {kind: {name for name, case in cases.items() if case["verdict"] == kind}
               for kind in ("passed", "refused", "failed")}
    known = {line.split(" ", 1)[0]: line for line in FAILURES.read_text().splitlines() if not line.startswith("#")}
    for name in sorted(verdict["failed"]):
        word = "known to fail" if name in known else "FAILED"
        print(f"{word}: {name} ({', '.join(operators[name])}): {cases[name]['why']}")
    expected = set(PASSES.read_text().split()) if PASSES.exists() else set()
    lost = sorted(expected - verdict["passed"])
    for name in lost:
        print(f"LOST: {name}: {cases[name]['why'] if name in cases else 'there is no such test any more'}")
    unknown = verdict["failed"] - known.keys()
    if arguments.grow:
        PASSES.write_text("\n".join(sorted(expected | verdict["passed"])) + "\n")
        kept = [line for line in FAILURES.read_text().splitlines()
                if line.startswith("#") or line.split(" ", 1)[0] in verdict["failed"]]
        FAILURES.write_text("\n".join(kept) + "\n")
    elif verdict["passed"] - expected or known.keys() - verdict["failed"]:
        print("more tests pass, or fewer fail, than the lists say; --grow writes them")
    (arguments.folder / "report.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} tests of onnx {onnx.__version__}: " + ", ".join(f"{len(v)} {k}" for k, v in verdict.items()))
    print(f"{len(expected) - len(lost)} passed, {len(lost) + len(unknown)} failed")
    sys.exit(bool(lost or unknown))


if __name__ == "__main__":
    main()
