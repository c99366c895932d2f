"""Writes a small network with random weights that branches and joins, as Inception and ResNet do.

    pip install onnx==1.23.2 numpy
    python3 branching.py 7 branching.onnx
    python3 branching.py 8 branching-retrained.onnx
"""
import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

seed, file = sys.argv[1:]
random = np.random.default_rng(int(seed))
nodes, constants = [], []


def constant(name, *dims):
    values = (random.standard_normal(dims) / np.sqrt(max(1, np.prod(dims[1:])))).astype(np.float32)
    constants.append(numpy_helper.from_array(values, name))
    return name


def node(operator, output, *inputs, **attributes):
    nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
    return output


def conv(name, source, maps, filters, window, stride=1):
    weights, bias = constant(f"{name}.w", filters, maps, window, window), constant(f"{name}.b", filters)
    pads = [window // 2] * 4
    convolved = node("Conv", f"{name}.conv", source, weights, bias, pads=pads, strides=[stride, stride])
    return node("Relu", name, convolved)


stem = conv("stem", node("Mul", "scaled", "input", constant("scale", 1)), 3, 16, 3)
# Branches that narrow at once: between here and `joined` the fewest bytes cross through three tensors.
a = conv("a2", conv("a1", stem, 16, 2, 1, stride=2), 2, 24, 3)
b = conv("b3", conv("b2", conv("b1", stem, 16, 1, 1, stride=2), 1, 16, 5), 16, 16, 3)
c = conv("c2", node("MaxPool", "c1", conv("c0", stem, 16, 2, 1), kernel_shape=[2, 2], strides=[2, 2]), 2, 8, 1)
joined = node("Concat", "joined", a, b, c, axis=1)
early = node("GlobalAveragePool", "early.pool", joined)
early = node("Gemm", "exit1", node("Flatten", "early.flat", early), constant("early.w", 48, 10), constant("early.b", 10))
# A skip beside two convolutions, the first of which narrows a lot.
narrow = conv("r1", joined, 48, 1, 1)
wide = conv("r2", narrow, 1, 48, 3)
summed = node("Add", "summed", wide, joined)
last = node("Flatten", "flat", node("GlobalAveragePool", "pool", summed))
node("Gemm", "exit2", last, constant("w", 48, 10), constant("b", 10))

exits = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 10]) for name in ("exit1", "exit2")]
entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, 16])
graph = helper.make_graph(nodes, "branching", [entry], exits, constants)
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
