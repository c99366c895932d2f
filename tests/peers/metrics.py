#!/usr/bin/env python3
"""A real Prometheus scrapes both roles; what docs/alerts.yml and docs/grafana-dashboard.json ask for is there.

    cargo build --release --workspace
    python3 tests/peers/metrics.py
"""

import contextlib
import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

from hosts import EXAMPLES, ROOT, build, edgent, host

PATIENCE_S = 60
RULES, BOARD = ROOT / "docs/alerts.yml", ROOT / "docs/grafana-dashboard.json"


def get(url):
    return urllib.request.urlopen(url, timeout=10).read().decode()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def prometheus(folder, targets):
    config = pathlib.Path(folder) / "prometheus.yml"
    config.write_text(json.dumps({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "edgent", "static_configs": [{"targets": targets}]}],
    }))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/data",
                                f"--web.listen-address={address}", "--log.level=error"])
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def query(server, expression):
    answer = json.loads(get(f"{server}/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    assert answer["status"] == "success", (expression, answer)
    return answer["data"]["result"]


def until(what, check):
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            if value := check():
                return value
        assert time.monotonic() < end, f"never {what}"
        time.sleep(0.2)


def main():
    subprocess.run(["promtool", "check", "rules", RULES], check=True)
    board = json.loads(BOARD.read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked = [expression.replace("$__rate_interval", "1m").replace("$instance", ".*") for expression in asked]
    rules = re.findall(r"expr: >?((?:.|\n)*?)\n(?:        for|        labels)", RULES.read_text())
    names = set(re.findall(r"edgent_\w+|process_\w+", RULES.read_text() + BOARD.read_text()))
    with tempfile.TemporaryDirectory() as folder:
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        with host("edge", bundle) as (edge_link, edge), \
             host("device", bundle, "--edge", edge_link, "--emulate-slowdown", 50) as (link, device), \
             prometheus(folder, [edge, device]) as server:
            for address in (edge, device):
                text = get(f"http://{address}/metrics")
                subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)
            until("scraped", lambda: len(query(server, "up == 1")) == 2)
            edgent("infer", *EXAMPLES, "--device", link)
            until("counted", lambda: query(server, f"sum(edgent_requests_total) == {len(EXAMPLES)}"))
            until("measured", lambda: query(server, "edgent_link_bandwidth_bytes_per_second > 0"))
            missing = [name for name in names if not query(server, f"{{__name__=~'{name}'}}")]
            assert not missing, f"asked for, and not there: {missing}"
            for expression in asked + rules:
                query(server, expression)
            loaded = json.loads(get(f"{server}/api/v1/rules"))["data"]["groups"][0]["rules"]
            until("evaluated", lambda: all(
                rule["health"] == "ok"
                for rule in json.loads(get(f"{server}/api/v1/rules"))["data"]["groups"][0]["rules"]))
    print(f"{len(asked)} panels' queries, {len(loaded)} rules, {len(names)} metrics")
    print(f"{len(asked) + len(loaded) + len(names)} passed, 0 failed")


if __name__ == "__main__":
    main()
