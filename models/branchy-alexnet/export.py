"""Exports the trained network to ONNX, with all that is needed to check it: labelled scenes, golden outputs, figures.

The figures it prints are the ones quoted in model.toml and README.md. Files appear in --out whole or not at all.
Another version of the network, with a --name of its own, is exported beside the first and shares its samples.
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
    parser.add_argument("--name", help="of another version: its files are NAME.onnx, NAME.toml, NAME.golden.safetensors")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    onnx_file = f"{args.name or 'branchy-alexnet'}.onnx"
    toml_file = f"{args.name or 'model'}.toml"
    golden_file = f"{args.name}.golden.safetensors" if args.name else "golden.safetensors"
    torch.set_num_threads(1)

    model = Branchy()
    model.load_state_dict(torch.load(args.checkpoint, map_location="cpu"))
    model = deployable(model).to(memory_format=torch.contiguous_format)
    splits = {split: held_out(args, split) for split in SHEETS}
    figures = {split: accuracy(model, *splits[split]) for split in splits}
    macs, activations = costs(model)

    with TemporaryDirectory(dir=args.out, prefix=".export-") as stage:
        stage = Path(stage)
        write_onnx(model, stage / onnx_file)
        if not args.name:
            write_samples(splits, CLASSES[args.data], stage / "samples")
        scenes, labels = read_sheet("test", (args.out if args.name else stage) / "samples")
        sheet = check_and_write_golden(model, scenes, labels, stage / onnx_file, stage / golden_file)
        (stage / toml_file).write_text(model_toml(onnx_file, golden_file, CLASSES[args.data], figures))
        for file in [path for path in stage.rglob("*") if path.is_file()]:
            target = args.out / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)

    figures = {f"accuracy_{split}": values for split, values in figures.items()}
    figures |= sheet | {"macs": macs, "trunk_activations": activations}
    figures["onnx_bytes"] = (args.out / onnx_file).stat().st_size
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


def read_sheet(split, folder):
    """What `write_samples` wrote: versions are compared on the same pixels, however torch rounds when it composes them."""
    columns, rows = SHEETS[split]
    pixels = torch.from_numpy(np.array(Image.open(folder / f"{split}.png")))
    scenes = pixels.view(rows, SIDE, columns, SIDE, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE)
    return scenes, torch.tensor([int(label) for label in (folder / f"{split}.labels").read_text().split()])


def check_and_write_golden(model, scenes, labels, onnx_path, golden_path):
    """Runs the ONNX file on the test sheet's scenes, compares it with torch, and keeps the first outputs as golden."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
    answers = zip(*(session.run(EXITS, {"image": scene[None].numpy()}) for scene in scenes))
    logits = {name: np.concatenate(rows) for name, rows in zip(EXITS, answers)}
    with torch.no_grad():
        expected = [torch.cat(parts).numpy() for parts in zip(*(model(part) for part in scenes.split(100)))]
    difference = max(float(np.abs(logits[name] - values).max()) for name, values in zip(EXITS, expected))
    assert difference <= ALLOWED_DIFFERENCE, f"onnxruntime and torch differ by {difference}"
    golden = {"image": scenes[:GOLDEN].numpy()} | {name: values[:GOLDEN] for name, values in logits.items()}
    golden_path.write_bytes(save(golden))
    right = [round(float((values.argmax(1) == labels.numpy()).mean()), 4) for values in logits.values()]
    return {"accuracy_test_sheet": right, "max_difference_onnxruntime_torch": difference}


def model_toml(onnx_file, golden_file, classes, figures):
    lines = ["format = 1", 'name = "branchy-alexnet"', f'onnx = "{onnx_file}"', f"classes = {json.dumps(classes)}", ""]
    lines += ["[input]", 'name = "image"', "# NCHW, u8, RGB; normalisation is part of the network", f"shape = [1, 3, {SIDE}, {SIDE}]", ""]
    for index, name in enumerate(EXITS):
        lines += ["[[exits]]", f'output = "{name}"']
        lines += [f"accuracy_{split} = {values[index]:.4f}" for split, values in figures.items()] + [""]
    lines += ["[samples]"] + [f'{split} = "samples/{split}"  # .png + .labels' for split in SHEETS]
    lines += [f'golden = "{golden_file}"', f"tile_px = {SIDE}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
