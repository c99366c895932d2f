#!/usr/bin/env python3
"""NVIDIA's client of the Open Inference Protocol over gRPC against real hosts: its answers are those of REST.

    cargo build --release --workspace
    target/peers/bin/python tests/peers/grpc_clients.py
"""

import tempfile

import numpy as np
import tritonclient.grpc as triton
import tritonclient.http as rest
from safetensors.numpy import load_file
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hosts import EXAMPLES, ROOT, build, host
from http_clients import MODEL, image
from http_clients import tensor as rest_tensor


def tensor(name, values):
    given = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values)
    return given


def parameters(answer):
    """What an answer says of itself, as REST has it."""
    said = answer.get_response().parameters
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in said.items()}


def health(client, metadata):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.get_server_metadata().name == "edgent"
    assert "model_repository" in client.get_server_metadata().extensions
    told = client.get_model_metadata(MODEL)
    (version,) = told.versions
    assert [version] == metadata["versions"] and told.platform == metadata["platform"]
    for ours, theirs in ((told.inputs, metadata["inputs"]), (told.outputs, metadata["outputs"])):
        assert [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in ours] == theirs
    assert client.is_model_ready(MODEL, version)
    (row,) = client.get_model_repository_index().models
    assert (row.name, row.version, row.state) == (MODEL, version, "READY")


def answers(client, http, metadata):
    """Each image, compared with REST's answer."""
    compared = 0
    for path in EXAMPLES:
        expected = http.infer(MODEL, [rest_tensor("image", image(path), True)])
        for outputs in (None, [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("scores")]):
            answer = client.infer(MODEL, [tensor("image", image(path))], outputs=outputs, request_id=path.stem)
            response, said = answer.get_response(), parameters(answer)
            assert response.id == path.stem and [response.model_version] == metadata["versions"]
            for name in ("scores", "label"):
                assert np.array_equal(answer.as_numpy(name), expected.as_numpy(name)), name
            theirs = expected.get_response()["parameters"]
            for name in ("class", "exit", "accuracy", "placement", "deadline_met", "degraded", "epoch"):
                assert said[name] == theirs[name], (name, said, theirs)
            compared += 1
    return compared


def wishes(client, metadata):
    """Deadlines and floors that a request brings."""
    inputs = [tensor("image", image(EXAMPLES[0]))]
    best = max(exit["accuracy"] for exit in metadata["exits"])
    ask = lambda timeout=None, **wish: parameters(client.infer(MODEL, inputs, parameters=wish, client_timeout=timeout))
    hurried, patient = ask(deadline_ms=1), ask(deadline_ms=60_000)
    assert hurried["deadline_ms"] == 1, hurried
    assert patient["deadline_met"] and patient["accuracy"] == best, patient
    floored = ask(deadline_ms="0.01", accuracy_floor=str(best))
    assert floored["accuracy"] == best and not floored["deadline_met"], floored
    # gRPC's own deadline is one, too; its client rounds up.
    assert 3_000 < ask(timeout=4, deadline_ms=60_000)["deadline_ms"] < 5_000


def refusals(client):
    good = image(EXAMPLES[0])
    cases = [
        ("lenet", [tensor("image", good)], {}, "StatusCode.NOT_FOUND", "there is no model 'lenet'"),
        (MODEL, [tensor("picture", good)], {}, "StatusCode.INVALID_ARGUMENT", "no input 'picture'"),
        (MODEL, [tensor("image", good.astype(np.float32))], {}, "StatusCode.INVALID_ARGUMENT", "not FP32[1, 3, 64, 64]"),
        (MODEL, [tensor("image", good.astype(np.float64))], {}, "StatusCode.RESOURCE_EXHAUSTED", "over the limit"),
        (MODEL, [tensor("image", good[:, :, :32].copy())], {}, "StatusCode.INVALID_ARGUMENT", "not UINT8[1, 3, 32, 64]"),
        (MODEL, [tensor("image", good[:, :, :32].copy())] * 2, {}, "StatusCode.INVALID_ARGUMENT", "must be UINT8"),
        (MODEL, [tensor("image", good)], {"model_version": "7"}, "StatusCode.NOT_FOUND", "version '7'"),
        (MODEL, [tensor("image", good)], {"outputs": [triton.InferRequestedOutput("y")]}, "StatusCode.INVALID_ARGUMENT",
         "no output 'y'"),
        (MODEL, [tensor("image", good)], {"outputs": [triton.InferRequestedOutput("scores", class_count=3)]},
         "StatusCode.INVALID_ARGUMENT", "'classification' is not done here"),
        (MODEL, [tensor("image", good)], {"parameters": {"deadline_ms": "soon"}}, "StatusCode.INVALID_ARGUMENT",
         "'deadline_ms' must be"),
        (MODEL, [tensor("image", good)], {"compression_algorithm": "gzip"}, "StatusCode.UNIMPLEMENTED", "not compressed"),
    ]
    for model, inputs, named, status, why in cases:
        try:
            client.infer(model, inputs, **named)
        except InferenceServerException as error:
            assert (error.status(), why in error.message()) == (status, True), (status, why, error)
        else:
            raise SystemExit(f"{model} {named} was answered")
    for call in (client.load_model, client.unload_model):
        try:
            call(MODEL)
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNIMPLEMENTED" and "edgent push" in error.message(), error
        else:
            raise SystemExit("a model was loaded")
    return len(cases)


def several(folder):
    """A network with several inputs and outputs, whose elements are compared with what it computes elsewhere."""
    bundle = build("host/nn/tests/data/several/several.onnx", folder, "--dim", "rows=3")
    values = load_file(ROOT / "host/nn/tests/data/several/several.safetensors")
    with host("device", bundle) as (_, http):
        client = triton.InferenceServerClient(http)
        metadata = client.get_model_metadata("several")
        for index in range(len(values["x"])):
            inputs = [tensor(given.name, values[given.name][index]) for given in metadata.inputs]
            answer = client.infer("several", inputs[::-1])
            for output in metadata.outputs:
                got, expected = answer.as_numpy(output.name), values[output.name][index]
                assert list(got.shape) == list(output.shape)
                assert np.allclose(got, expected.astype(got.dtype), atol=1e-6), (output, got, expected)
        client.close()
        return len(values["x"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/branchy")
        passed = 0
        for role in ("edge", "device"):
            # Time enough for the best exit, so that answers can be compared.
            with host(role, bundle, "--deadline-ms", 5000) as (_, address):
                client, http = triton.InferenceServerClient(address), rest.InferenceServerClient(address)
                metadata = http.get_model_metadata(MODEL)
                health(client, metadata)
                compared = answers(client, http, metadata)
                wishes(client, metadata)
                refused = refusals(client)
                print(f"{role}: {compared} answers, {refused} refusals")
                passed += compared + refused
                http.close()
                # The other client stays connected while its host ends.
            client.close()
        samples = several(f"{folder}/several")
        print(f"several inputs and outputs: {samples} samples")
        print(f"{passed + samples} passed, 0 failed")


if __name__ == "__main__":
    main()
