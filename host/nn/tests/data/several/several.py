"""A small network with whatever other networks seldom have all at once: several inputs, one of whose sizes is open;
several outputs that belong together, one of them of bool; a branch that is decided once the size is fixed, one that
is decided anew for each input, and an operator that tract's NNEF has no word for (an exact GELU). Made-up weights.

    python several.py    # writes several.onnx, and several.safetensors: inputs, with onnxruntime's outputs
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

random = np.random.default_rng(5)
weights = {
    "wide": random.normal(0, 0.5, (8, 16)).astype(np.float32),
    "narrow": random.normal(0, 0.5, (16, 4)).astype(np.float32),
    "two": np.array(2, np.int64),
    "half": np.array(0.3, np.float32),
    "nothing": np.array(0, np.float32),
    "double": np.array(2, np.float32),
    "triple": np.array(3, np.float32),
}


def branch(name, nodes):
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])


nodes = [
    helper.make_node("MatMul", ["x", "wide"], ["a"]),
    helper.make_node("Gelu", ["a"], ["b"]),
    helper.make_node("MatMul", ["b", "narrow"], ["c"]),
    helper.make_node("Shape", ["c"], ["c.dims"]),
    helper.make_node("Size", ["c.dims"], ["c.rank"]),
    helper.make_node("Equal", ["c.rank", "two"], ["c.is_plain"]),
    helper.make_node(
        "If", ["c.is_plain"], ["d"], name="by_rank",
        then_branch=branch("plain", [helper.make_node("Add", ["c", "state"], ["out"])]),
        else_branch=branch("deep", [helper.make_node("Squeeze", ["c"], ["out"])]),
    ),
    helper.make_node("ReduceSum", ["d"], ["sum"], keepdims=0),
    helper.make_node("Greater", ["sum", "nothing"], ["is_positive"]),
    helper.make_node(
        "If", ["is_positive"], ["new_state"], name="by_sum",
        then_branch=branch("positive", [helper.make_node("Mul", ["d", "double"], ["out"])]),
        else_branch=branch("negative", [helper.make_node("Mul", ["d", "triple"], ["out"])]),
    ),
    helper.make_node("Softmax", ["new_state"], ["y"], axis=1),
    helper.make_node("Greater", ["y", "half"], ["is_high"]),
]
graph = helper.make_graph(
    nodes, "several",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 8]),
     helper.make_tensor_value_info("state", TensorProto.FLOAT, ["rows", 4])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4]),
     helper.make_tensor_value_info("new_state", TensorProto.FLOAT, ["rows", 4]),
     helper.make_tensor_value_info("is_high", TensorProto.BOOL, ["rows", 4])],
    [numpy_helper.from_array(value, name) for name, value in weights.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
onnx.checker.check_model(model)
onnx.save(model, "several.onnx")

# What crosses a cut is wanted, too.
model.graph.output.append(helper.make_tensor_value_info("d", TensorProto.FLOAT, ["rows", 4]))
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
# So far apart that each branch is taken once.
x, state = random.normal(0, 1, (3, 8)).astype(np.float32), random.normal(0, 1, (3, 4)).astype(np.float32)
values = []
for shift in (2, -2):
    feeds = {"x": x, "state": state + np.float32(shift)}
    given = dict(zip(["y", "new_state", "is_high", "d"], session.run(None, feeds)))
    values.append({**feeds, **given, "is_high": given["is_high"].astype(np.uint8)})
save_file({name: np.stack([value[name] for value in values]) for name in values[0]}, "several.safetensors")
