"""Writes lookup.onnx: a network whose second part looks up a row of a table, and fails where there is none.

    pip install onnx==1.23.2 numpy && python3 lookup.py

Inputs up to 4 have one; of those far greater, the row would lie behind the table's end.
"""
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

random = np.random.default_rng(7)
constants = [
    numpy_helper.from_array(np.full((2, 3, 4, 4), 1 / 48, np.float32), "mean"),
    numpy_helper.from_array(random.standard_normal((8, 10)).astype(np.float32), "table"),
    numpy_helper.from_array(np.array([1, 10], np.int64), "shape"),
]
nodes = [
    helper.make_node("Conv", ["input", "mean"], ["means"], name="means", strides=[4, 4]),
    helper.make_node("Relu", ["means"], ["positive"], name="positive"),
    helper.make_node("ReduceMax", ["positive"], ["greatest"], name="greatest", keepdims=0),
    helper.make_node("Cast", ["greatest"], ["row"], name="row", to=TensorProto.INT64),
    helper.make_node("Gather", ["table", "row"], ["looked-up"], name="looked-up", axis=0),
    helper.make_node("Reshape", ["looked-up", "shape"], ["exit"], name="exit"),
]
entry = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 16, 16])
end = helper.make_tensor_value_info("exit", TensorProto.FLOAT, [1, 10])
graph = helper.make_graph(nodes, "lookup", [entry], [end], constants)
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), "lookup.onnx")
