#!/usr/bin/env python3
"""packaging/kserve/edgent.yaml says nothing that KServe's own models do not know, and what its container starts is ready.

    cargo build --release --workspace
    target/kserve/bin/python tests/peers/kserve_manifest.py

There is no cluster here: what a controller makes of the manifest is not tried.
"""

import os
import re
import subprocess
import tempfile
import urllib.request

import kserve
import kserve.models
import kubernetes.client.models
import yaml

from hosts import ROOT, build

MANIFEST = ROOT / "packaging/kserve/edgent.yaml"
KINDS = {"ServingRuntime": kserve.V1alpha1ServingRuntime, "InferenceService": kserve.V1beta1InferenceService}
PLAIN = {"str": str, "int": int, "bool": bool}
# What is a number or a name, as a port is.
ANY = {"object", "IntOrString"}


def check(value, type_name, place):
    """Whether a value is of a type of the models; says how many values were looked at."""
    if type_name in ANY:
        assert isinstance(value, (str, int, float, dict)), f"{place}: {value!r}"
        return 1
    if type_name in PLAIN:
        assert type(value) is PLAIN[type_name], f"{place}: {value!r} is no {type_name}"
        return 1
    if of := re.fullmatch(r"[lL]ist\[(.*)\]", type_name):
        assert isinstance(value, list), f"{place}: {value!r} is no list"
        return sum(check(item, of[1], f"{place}[{index}]") for index, item in enumerate(value))
    if of := re.fullmatch(r"[dD]ict[(\[]str, (.*)[)\]]", type_name):
        assert isinstance(value, dict), f"{place}: {value!r} is no mapping"
        return sum(check(item, of[1], f"{place}.{key}") for key, item in value.items())
    model = getattr(kserve.models, type_name, None) or getattr(kubernetes.client.models, type_name)
    return check_model(value, model, place)


def check_model(value, model, place):
    assert isinstance(value, dict), f"{place}: {value!r} is no {model.__name__}"
    names = {told: name for name, told in model.attribute_map.items()}
    unknown = set(value) - set(names)
    assert not unknown, f"{place}: {model.__name__} knows no {unknown}"
    # Made of it, a model refuses what lacks something.
    model(**{names[key]: item for key, item in value.items()})
    return sum(check(item, model.openapi_types[names[key]], f"{place}.{key}") for key, item in value.items())


def get(address, path):
    return urllib.request.urlopen(f"http://{address}{path}", timeout=10).status


def start_container(container, bundle):
    """What the container would start, with this machine's paths and ports, and its probes."""
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    assert env["EDGENT_MODEL"] == "/mnt/models"
    port = container["ports"][0]["containerPort"]
    assert env["EDGENT_HTTP"].endswith(f":{port}")
    env |= {"EDGENT_MODEL": str(bundle), "EDGENT_HTTP": "127.0.0.1:0", "EDGENT_LISTEN": "127.0.0.1:0"}
    host = subprocess.Popen([ROOT / "target/release/edgent-host"], env=env | {"HOME": os.environ["HOME"]},
                            stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"HTTP on (\S+),", host.stdout.readline())[1]
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port and get(address, asked["path"]) == 200, probe
        return 2
    finally:
        host.terminate()
        assert host.wait(timeout=30) == 0


def main():
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    assert [document["kind"] for document in documents] == list(KINDS)
    checked = sum(check_model(document, KINDS[document["kind"]], document["kind"]) for document in documents)
    runtime, service = documents
    asked = service["spec"]["predictor"]["model"]
    formats = [known["name"] for known in runtime["spec"]["supportedModelFormats"]]
    assert asked["runtime"] == runtime["metadata"]["name"] and asked["modelFormat"]["name"] in formats
    assert asked["protocolVersion"] in runtime["spec"]["protocolVersions"]
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("host/nn/tests/data/branching.onnx", f"{folder}/bundle")
        checked += start_container(runtime["spec"]["containers"][0], bundle)
    print(f"{checked} passed, 0 failed")


if __name__ == "__main__":
    main()
