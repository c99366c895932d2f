"""Exports the trained network to ONNX, with all that is needed to check it: labelled scenes, golden outputs, figures.

The figures it prints are the ones quoted in model.toml and README.md. Files appear in --out whole or not at all.
"""

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from safetensors.numpy import save

from network import EXITS, Branchy, accuracy, costs, deployable
from scenes import CLASSES, SIDE, add_arguments, held_out

SHEETS = {"validation": (25, 20), "test": (30, 20)}  # columns and rows of the sheets of sample scenes
GOLDEN = 16
ALLOWED_DIFFERENCE = 1e-4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--checkpoint", default="checkpoint.pt")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.set_num_threads(1)

    model = Branchy()
    model.load_state_dict(torch.load(args.checkpoint, map_location="cpu"))
    model = deployable(model).to(memory_format=torch.contiguous_format)
    splits = {split: held_out(args, split) for split in SHEETS}
    figures = {split: accuracy(model, *splits[split]) for split in splits}
    macs, activations = costs(model)

    with TemporaryDirectory(dir=args.out, prefix=".export-") as stage:
        stage = Path(stage)
        write_onnx(model, stage / "branchy-alexnet.onnx")
        write_samples(splits, CLASSES[args.data], stage / "samples")
        sheet = check_and_write_golden(model, *splits["test"], stage)
        (stage / "model.toml").write_text(model_toml(CLASSES[args.data], figures))
        for file in [path for path in stage.rglob("*") if path.is_file()]:
            target = args.out / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)

    figures = {f"accuracy_{split}": values for split, values in figures.items()}
    figures |= sheet | {"macs": macs, "trunk_activations": activations}
    figures["onnx_bytes"] = (args.out / "branchy-alexnet.onnx").stat().st_size
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value)}")


def write_onnx(model, path):
    scene = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    torch.onnx.export(model, scene, str(path), input_names=["image"], output_names=EXITS, opset_version=13)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    assert not {node.op_type for node in proto.graph.node} & {"If", "Dropout", "Shape", "BatchNormalization"}
    onnx.save(proto, path)


def write_samples(splits, classes, folder):
    """Each sheet holds scenes side by side, row by row, without gaps; its .labels has a class index a line, in that order."""
    (folder / "examples").mkdir(parents=True)
    for split, (columns, rows) in SHEETS.items():
        scenes, labels = (part[: columns * rows] for part in splits[split])
        tiles = scenes.view(rows, columns, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2)
        write_png(tiles.reshape(rows * SIDE, columns * SIDE, 3), folder / f"{split}.png")
        (folder / f"{split}.labels").write_text("".join(f"{label}\n" for label in labels.tolist()))
    scenes, labels = splits["test"]
    for index, name in enumerate(classes):
        scene = scenes[int((labels == index).nonzero()[0])]
        write_png(scene.permute(1, 2, 0), folder / "examples" / f"{name}.png")


def write_png(pixels, path):
    Image.fromarray(pixels.contiguous().numpy()).save(path, optimize=True)


def check_and_write_golden(model, scenes, labels, folder):
    """Runs the ONNX file on the test sheet's scenes, compares it with torch, and keeps the first outputs as golden."""
    columns, rows = SHEETS["test"]
    scenes, labels = scenes[: columns * rows], labels[: columns * rows]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "branchy-alexnet.onnx"), options, providers=["CPUExecutionProvider"])
    answers = zip(*(session.run(EXITS, {"image": scene[None].numpy()}) for scene in scenes))
    logits = {name: np.concatenate(rows) for name, rows in zip(EXITS, answers)}
    with torch.no_grad():
        expected = [torch.cat(parts).numpy() for parts in zip(*(model(part) for part in scenes.split(100)))]
    difference = max(float(np.abs(logits[name] - values).max()) for name, values in zip(EXITS, expected))
    assert difference <= ALLOWED_DIFFERENCE, f"onnxruntime and torch differ by {difference}"
    golden = {"image": scenes[:GOLDEN].numpy()} | {name: values[:GOLDEN] for name, values in logits.items()}
    (folder / "golden.safetensors").write_bytes(save(golden))
    right = [round(float((values.argmax(1) == labels.numpy()).mean()), 4) for values in logits.values()]
    return {"accuracy_test_sheet": right, "max_difference_onnxruntime_torch": difference}


def model_toml(classes, figures):
    lines = ["format = 1", 'name = "branchy-alexnet"', 'onnx = "branchy-alexnet.onnx"', f"classes = {json.dumps(classes)}", ""]
    lines += ["[input]", 'name = "image"', "# NCHW, u8, RGB; normalisation is part of the network", f"shape = [1, 3, {SIDE}, {SIDE}]", ""]
    for index, name in enumerate(EXITS):
        lines += ["[[exits]]", f'output = "{name}"']
        lines += [f"accuracy_{split} = {values[index]:.4f}" for split, values in figures.items()] + [""]
    lines += ["[samples]"] + [f'{split} = "samples/{split}"  # .png + .labels' for split in SHEETS]
    lines += ['golden = "golden.safetensors"', f"tile_px = {SIDE}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
