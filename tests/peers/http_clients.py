#!/usr/bin/env python3
"""NVIDIA's client of the Open Inference Protocol against real hosts: its answers are those of `edgent infer`.

    cargo build --release --workspace
    target/peers/bin/python tests/peers/http_clients.py
"""

import tempfile
import urllib.request

import numpy as np
import tritonclient.http as triton
from PIL import Image
from safetensors.numpy import load_file
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from hosts import EXAMPLES, ROOT, build, edgent, host

MODEL = "branchy-alexnet"


def image(path):
    """As the network takes it: planes of bytes."""
    return np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)[np.newaxis])


def tensor(name, values, binary):
    given = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def refusal(client, *arguments, **named):
    """What the server says to a request that it must not answer."""
    try:
        client.infer(*arguments, **named)
    except InferenceServerException as error:
        return error.message()
    raise SystemExit(f"{arguments} {named} was answered")


def health(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert not client.is_model_ready("lenet")
    assert client.get_server_metadata()["name"] == "edgent"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata(MODEL)
    (version,) = metadata["versions"]
    assert client.is_model_ready(MODEL, version) and not client.is_model_ready(MODEL, "7")
    assert client.get_model_repository_index() == [{"name": MODEL, "version": version, "state": "READY", "reason": ""}]
    return metadata


def answers(client, metadata, link):
    """Each image in each form, compared with the tool's answer over the link."""
    told = edgent("infer", *EXAMPLES, "--device", link)["answers"] if link else [None] * len(EXAMPLES)
    (name,) = [given["name"] for given in metadata["inputs"]]
    compared = 0
    for path, expected in zip(EXAMPLES, told):
        for binary_in in (True, False):
            for outputs in (None, [triton.InferRequestedOutput("scores", binary_data=False)],
                            [triton.InferRequestedOutput("label"), triton.InferRequestedOutput("scores")]):
                inputs = [tensor(name, image(path), binary_in)]
                answer = client.infer(MODEL, inputs, outputs=outputs, request_id=path.stem)
                said, scores = answer.get_response(), answer.as_numpy("scores")
                assert said["id"] == path.stem and said["model_version"] in metadata["versions"]
                assert scores.dtype == np.float32 and scores.shape == (1, len(metadata["classes"]))
                best = int(scores.argmax())
                assert metadata["classes"][best] == said["parameters"]["class"]
                if answer.as_numpy("label") is not None:
                    assert answer.as_numpy("label").tolist() == [best]
                if expected:
                    parameters = said["parameters"]
                    assert (parameters["class"], parameters["exit"]) == (expected["label"], expected["exit"])
                    assert abs(float(scores.max()) - expected["score"]) < 1e-5, (scores, expected)
                compared += 1
    return compared


def wishes(client, metadata):
    """Deadlines and floors that a request brings."""
    inputs = [tensor("image", image(EXAMPLES[0]), True)]
    accuracies = [exit["accuracy"] for exit in metadata["exits"]]
    ask = lambda **wish: client.infer(MODEL, inputs, parameters=wish).get_response()["parameters"]
    hurried, patient = ask(deadline_ms=0.01), ask(deadline_ms=60_000)
    assert not hurried["deadline_met"] and hurried["degraded"] and hurried["deadline_ms"] == 0.01, hurried
    assert patient["deadline_met"] and patient["accuracy"] == max(accuracies), patient
    floored = ask(deadline_ms=0.01, accuracy_floor=max(accuracies))
    assert floored["accuracy"] == max(accuracies) and not floored["deadline_met"], floored


def refusals(client):
    good = image(EXAMPLES[0])
    cases = [
        ("lenet", [tensor("image", good, True)], {}, "there is no model 'lenet'"),
        (MODEL, [tensor("picture", good, True)], {}, "no input 'picture'"),
        (MODEL, [tensor("image", good.astype(np.float32), True)], {}, "must be UINT8[1, 3, 64, 64], not FP32"),
        (MODEL, [tensor("image", good[:, :, :32].copy(), False)], {}, "not UINT8[1, 3, 32, 64]"),
        (MODEL, [tensor("image", good, True)] * 2, {}, "given twice"),
        (MODEL, [tensor("image", good, True)], {"model_version": "7"}, "version '7'"),
        (MODEL, [tensor("image", good, True)], {"outputs": [triton.InferRequestedOutput("y")]}, "no output 'y'"),
        (MODEL, [tensor("image", good, True)], {"outputs": [triton.InferRequestedOutput("scores", class_count=3)]},
         "'classification' is not done here"),
        (MODEL, [tensor("image", good, True)], {"parameters": {"deadline_ms": "soon"}}, "'deadline_ms' must be"),
        (MODEL, [tensor("image", good, True)], {"parameters": {"accuracy_floor": 1.0}}, "the accuracy floor is 1"),
        (MODEL, [tensor("image", good, True)], {"request_compression_algorithm": "gzip"}, "not compressed"),
    ]
    for model, inputs, named, why in cases:
        said = refusal(client, model, inputs, **named)
        assert why in said, f"'{said}' does not say '{why}'"
    try:
        client.load_model(MODEL)
    except InferenceServerException as error:
        assert "edgent push" in error.message()
    return len(cases)


def several(folder):
    """A network with several inputs and outputs, whose elements are compared with what it computes elsewhere."""
    bundle = build("host/nn/tests/data/several/several.onnx", folder, "--dim", "rows=3")
    values = load_file(ROOT / "host/nn/tests/data/several/several.safetensors")
    with host("device", bundle) as (_, http):
        client = triton.InferenceServerClient(http)
        metadata = client.get_model_metadata("several")
        for index in range(len(values["x"])):
            inputs = [tensor(given["name"], values[given["name"]][index], binary)
                      for given, binary in zip(metadata["inputs"], (True, False))]
            answer = client.infer("several", inputs[::-1])
            for output in metadata["outputs"]:
                got, expected = answer.as_numpy(output["name"]), values[output["name"]][index]
                assert list(got.shape) == output["shape"]
                assert np.allclose(got, expected.astype(got.dtype), atol=1e-6), (output, got, expected)
        client.close()
        return len(values["x"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/branchy")
        passed = 0
        for role in ("edge", "device"):
            # Time enough for the best exit, so that answers can be compared.
            with host(role, bundle, "--deadline-ms", 5000) as (link, http):
                client = triton.InferenceServerClient(http)
                metadata = health(client)
                compared = answers(client, metadata, link if role == "device" else None)
                wishes(client, metadata)
                refused = refusals(client)
                print(f"{role}: {compared} answers, {refused} refusals")
                passed += compared + refused
                client.close()
                metrics = urllib.request.urlopen(f"http://{http}/metrics").read().decode()
                assert 'outcome="met"' in metrics, metrics
        samples = several(f"{folder}/several")
        print(f"several inputs and outputs: {samples} samples")
        print(f"{passed + samples} passed, 0 failed")


if __name__ == "__main__":
    main()
