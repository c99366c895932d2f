"""Writes recurrent.onnx: an LSTM over five steps that begins from nothing, with random weights.

    pip install onnx==1.23.2 numpy && python3 recurrent.py
"""
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

random = np.random.default_rng(3)
weights = {"w": (1, 16, 3), "r": (1, 16, 4), "b": (1, 32)}
constants = [numpy_helper.from_array(random.normal(0, 0.5, dims).astype(np.float32), name) for name, dims in weights.items()]
lstm = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "", ""], name="lstm", hidden_size=4)
tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in [("x", [5, 1, 3]), ("y", [5, 1, 1, 4])]]
graph = helper.make_graph([lstm], "recurrent", tensors[:1], tensors[1:], constants)
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "recurrent.onnx")
