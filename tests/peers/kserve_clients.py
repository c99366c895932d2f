#!/usr/bin/env python3
"""KServe's clients, of REST and of gRPC, against real hosts: both answer as `edgent infer` does.

    cargo build --release --workspace
    target/kserve/bin/python tests/peers/kserve_clients.py

In an environment of its own: the package brings 70 others, and its messages have the names of tritonclient's.
"""

import asyncio
import tempfile

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from PIL import Image

from hosts import EXAMPLES, build, edgent, host

MODEL = "branchy-alexnet"


def image(path):
    """As the network takes it: planes of bytes."""
    return np.ascontiguousarray(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)[np.newaxis])


def request(values, binary, request_id="", name="image", model=MODEL, outputs=None, **parameters):
    given = InferInput(name, list(values.shape), "UINT8")
    given.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [given], request_id=request_id, parameters=parameters, request_outputs=outputs)


def said(response):
    """An answer's parameters. KServe's gRPC knows no fractions: those it passes over."""
    told = response.parameters or {}
    value = lambda v: getattr(v, v.WhichOneof("parameter_choice") or "", None) if hasattr(v, "WhichOneof") else v
    return {name: value(parameter) for name, parameter in told.items()}


async def health(by_grpc, by_rest, url):
    assert await by_grpc.is_server_live() and await by_grpc.is_server_ready() and await by_grpc.is_model_ready(MODEL)
    assert await by_rest.is_server_live(url) and await by_rest.is_server_ready(url)
    assert await by_rest.is_model_ready(url, MODEL)
    try:
        await by_grpc.is_model_ready("lenet")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
    else:
        raise SystemExit("lenet is ready")


async def answers(by_grpc, by_rest, url, link):
    told = edgent("infer", *EXAMPLES, "--device", link)["answers"] if link else [None] * len(EXAMPLES)
    compared = 0
    for path, expected in zip(EXAMPLES, told):
        for binary in (True, False):
            for outputs in (None, [RequestedOutput("scores"), RequestedOutput("label")]):
                asked = lambda: request(image(path), binary, path.stem, outputs=outputs)
                both = [await by_grpc.infer(asked()), await by_rest.infer(url, asked(), model_name=MODEL)]
                scores, labels, ways = [], [], []
                for response in both:
                    assert (response.id, response.model_name) == (path.stem, MODEL)
                    outputs_by_name = {output.name: output for output in response.outputs}
                    scores.append(outputs_by_name["scores"].as_numpy())
                    labels.append(outputs_by_name["label"].as_numpy().tolist())
                    ways.append({key: said(response)[key] for key in ("class", "exit", "cut", "placement", "deadline_met")})
                assert scores[0].dtype == np.float32 and scores[0].shape == (1, 10)
                assert np.allclose(*scores, atol=1e-6) and labels[0] == labels[1] == [int(scores[0].argmax())]
                assert ways[0] == ways[1] and ways[0]["deadline_met"], ways
                if expected:
                    assert (ways[0]["class"], ways[0]["exit"]) == (expected["label"], expected["exit"]), (ways, expected)
                    assert abs(float(scores[0].max()) - expected["score"]) < 1e-5
                compared += 2
    return compared


async def wishes(by_grpc):
    """Deadlines and floors; fractions as text, since these clients have no other."""
    ask = lambda **wish: by_grpc.infer(request(image(EXAMPLES[0]), True, **wish))
    hurried, patient = said(await ask(deadline_ms="0.01")), said(await ask(deadline_ms=60_000))
    assert not hurried["deadline_met"] and hurried["degraded"], hurried
    assert patient["deadline_met"] and not patient["degraded"], patient
    floored = said(await ask(deadline_ms="0.01", accuracy_floor="0.5"))
    assert not floored["deadline_met"], floored


async def refusals(by_grpc, by_rest, url):
    good = image(EXAMPLES[0])
    cases = [
        (dict(values=good, binary=True, model="lenet"), grpc.StatusCode.NOT_FOUND, 404, "no model 'lenet'"),
        (dict(values=good, binary=True, name="picture"), grpc.StatusCode.INVALID_ARGUMENT, 400, "no input 'picture'"),
        (dict(values=good, binary=False, name="picture"), grpc.StatusCode.INVALID_ARGUMENT, 400, "no input 'picture'"),
        (dict(values=good[:, :, :32].copy(), binary=True), grpc.StatusCode.INVALID_ARGUMENT, 400, "[1, 3, 32, 64]"),
        (dict(values=good, binary=True, outputs=[RequestedOutput("y")]), grpc.StatusCode.INVALID_ARGUMENT, 400,
         "no output 'y'"),
        (dict(values=good, binary=True, deadline_ms="soon"), grpc.StatusCode.INVALID_ARGUMENT, 400, "'deadline_ms' must be"),
    ]
    for given, code, status, why in cases:
        try:
            await by_grpc.infer(request(**given))
        except grpc.RpcError as error:
            assert (error.code(), why in error.details()) == (code, True), (given, error)
        else:
            raise SystemExit(f"{why}: answered")
        try:
            await by_rest.infer(url, request(**given), model_name=given.get("model", MODEL))
        except httpx.HTTPStatusError as error:
            assert (error.response.status_code, why in error.response.text) == (status, True), (given, error)
        else:
            raise SystemExit(f"{why}: answered")
    return 2 * len(cases)


async def ask(role, link, address):
    by_grpc = InferenceGRPCClient(address)
    by_rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    url = f"http://{address}"
    await health(by_grpc, by_rest, url)
    compared = await answers(by_grpc, by_rest, url, link if role == "device" else None)
    await wishes(by_grpc)
    refused = await refusals(by_grpc, by_rest, url)
    await by_grpc.close()
    await by_rest.close()
    print(f"{role}: {compared} answers, {refused} refusals")
    return compared + refused


def main():
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/branchy")
        passed = 0
        for role in ("edge", "device"):
            with host(role, bundle, "--deadline-ms", 5000) as (link, address):
                passed += asyncio.run(ask(role, link, address))
        print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
