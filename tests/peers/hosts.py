"""Starts hosts of Edgent, for the tests that ask them as foreign programs do."""

import contextlib
import json
import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where the programs were built: features that are off by default have folders of their own.
BUILT = ROOT / os.environ.get("BUILT", "target/release")
EDGENT = BUILT / "edgent"
EXAMPLES = sorted((ROOT / "models/branchy-alexnet/samples/examples").glob("*.png"))


def edgent(*arguments, env={}):
    """What a command prints as JSON."""
    command = [EDGENT, *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=os.environ | env)
    return json.loads(done.stdout)


def build(onnx, folder, *more):
    edgent("build", ROOT / onnx, "--out", folder, "--samples", 20, *more)
    return folder


@contextlib.contextmanager
def host(role, bundle, *more, env={}, built=BUILT):
    """A running host: its addresses of the link and of HTTP."""
    own = ["--role", role, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--model", bundle]
    command = [built / "edgent-host", *own, *more]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=os.environ | env)
    try:
        line = process.stdout.readline()
        http, link = re.fullmatch(r"edgent-host \w+ HTTP on (\S+), listening on (\S+)\n", line).groups()
        yield link, http
    finally:
        process.terminate()
        code = process.wait(timeout=30)
    if code:
        raise SystemExit(f"the {role} ended with {code} after SIGTERM")
