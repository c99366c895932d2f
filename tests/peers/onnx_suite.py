#!/usr/bin/env python3
"""The node tests of the `onnx` package through Edgent's import and sandbox.

Each test is a network of one operator, mostly, with inputs and the outputs that the ONNX reference gives for them.
Many hand in as inputs what a real network has as constants (a shape, axes): such a test is run once more with its
whole-number inputs as constants, under its name and `.pinned`.

    onnx_suite.py            fails if a test of onnx_passes.txt does not pass, or if any answer is wrong
    onnx_suite.py --grow     adds the tests that pass to onnx_passes.txt; none is ever taken out

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
WIDER = {"bool": np.uint8, "int8": np.int32, "int16": np.int32, "uint16": np.int32, "uint32": np.int64}


def tensors(protos, values):
    """Values by their names, in a type that can cross; none if one is no such tensor."""
    named = {}
    for proto, value in zip(protos, values):
        value = np.asarray(value) if not isinstance(value, (list, dict, onnx.TensorProto)) and value is not None else None
        if value is None or value.dtype.kind not in "biuf" or value.dtype.itemsize > 8:
            return None
        named[proto.name] = np.ascontiguousarray(value.astype(WIDER.get(value.dtype.name, value.dtype)))
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


def write(folder, name, model, values):
    case = folder / name
    case.mkdir(parents=True)
    (case / "model.onnx").write_bytes(model.SerializeToString())
    save_file(values or {"none": np.zeros(1, np.uint8)}, case / "values.safetensors")


def write_all(folder):
    """Every test as a folder; the operators of each, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    operators = {}
    for test in load_model_tests(kind="node"):
        model = test.model
        inputs, outputs = test.data_sets[0]
        values = {**(tensors(model.graph.input, inputs) or {}), **(tensors(model.graph.output, outputs) or {})}
        variants = {test.name: model, f"{test.name}.pinned": pinned(model, inputs)}
        for name, variant in variants.items():
            if variant is not None:
                write(folder, name, variant, values)
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
    for name in sorted(verdict["failed"]):
        print(f"FAILED {name} ({', '.join(operators[name])}): {cases[name]['why']}")
    expected = set(PASSES.read_text().split()) if PASSES.exists() else set()
    lost = sorted(expected - verdict["passed"])
    for name in lost:
        print(f"LOST {name}: {cases[name]['why'] if name in cases else 'there is no such test any more'}")
    new = verdict["passed"] - expected
    if arguments.grow:
        PASSES.write_text("\n".join(sorted(expected | verdict["passed"])) + "\n")
    elif new:
        print(f"{len(new)} tests pass that are not in {PASSES.name}; add them with --grow")
    (arguments.folder / "report.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} tests of onnx {onnx.__version__}: " + ", ".join(f"{len(v)} {k}" for k, v in verdict.items()))
    print(f"{len(expected) - len(lost)} passed, {len(lost) + len(verdict['failed'])} failed")
    sys.exit(bool(lost or verdict["failed"]))


if __name__ == "__main__":
    main()
