#!/usr/bin/env python3
"""A collector that reads OpenTelemetry's own messages, told by two real hosts what becomes of requests: one trace over
both, each span with its parent.

    just features
    BUILT=target/features target/otel-peers/bin/python tests/peers/otel.py
"""

import contextlib
import http.server
import secrets
import tempfile
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as rest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from PIL import Image

from hosts import EXAMPLES, ROOT, build, edgent, host

MODEL = "branchy-alexnet"
PATIENCE_S = 60
CUT = 2


class Collector:
    """What was told, by whom: OTLP over HTTP, on an address of its own."""

    def __init__(self):
        self.spans, self.changed = [], threading.Condition()
        collector = self

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf"), self.path
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def environment(self, **more):
        told = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}"}
        return told | {"OTEL_BSP_SCHEDULE_DELAY": "100"} | more

    def take(self, message):
        with self.changed:
            for resource_spans in message.resource_spans:
                service = values(resource_spans.resource)["service.name"]
                for scope_spans in resource_spans.scope_spans:
                    self.spans += [(service, span) for span in scope_spans.spans]
            self.changed.notify_all()

    def trace(self, trace_id, count):
        """The spans of a trace, once there are so many."""
        mine = lambda: [(service, span) for service, span in self.spans if span.trace_id == trace_id]
        with self.changed:
            assert self.changed.wait_for(lambda: len(mine()) >= count, PATIENCE_S), mine()
            return mine()


def values(of):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


class Caller:
    """Whoever asks, in a span of its own that nobody tells."""

    def __init__(self, is_sampled=True):
        self.trace_id, self.span_id = secrets.token_bytes(16), secrets.token_bytes(8)
        self.traceparent = f"00-{self.trace_id.hex()}-{self.span_id.hex()}-{is_sampled:02x}"


def pixels():
    return np.ascontiguousarray(np.asarray(Image.open(EXAMPLES[0]).convert("RGB")).transpose(2, 0, 1)[np.newaxis])


def ask(module, address, headers):
    image = module.InferInput("image", [1, 3, 64, 64], "UINT8")
    image.set_data_from_numpy(pixels())
    client = module.InferenceServerClient(address)
    answer = client.infer(MODEL, [image], headers=headers, parameters={"deadline_ms": 20_000} if module is rest else None)
    client.close()
    return answer


def split(spans, caller, services):
    """Whether these are what a request leaves behind that both hosts worked on."""
    device, edge = services
    named = {(service, span.name): span for service, span in spans}
    assert len(named) == len(spans) == 5, sorted(named)
    request, plan, part, wire, there = (
        named[key] for key in [(device, "request"), (device, "plan"), (device, "part"), (device, "wire"), (edge, "part")])
    assert {span.trace_id for _, span in spans} == {caller.trace_id}
    assert request.parent_span_id == caller.span_id and request.kind == Span.SPAN_KIND_SERVER
    assert {plan.parent_span_id, part.parent_span_id, wire.parent_span_id} == {request.span_id}
    assert there.parent_span_id == wire.span_id
    assert (wire.kind, there.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    # One machine, one clock: nothing is outside of what it belongs to, and what follows begins later.
    ends = [(span.start_time_unix_nano, span.end_time_unix_nano) for span in (request, wire, there)]
    assert all(outer[0] <= inner[0] <= inner[1] <= outer[1] for outer, inner in zip(ends, ends[1:])), ends
    assert plan.end_time_unix_nano <= part.start_time_unix_nano and part.end_time_unix_nano <= wire.start_time_unix_nano
    told = values(request)
    assert told["edgent.model"] == MODEL and told["edgent.version"].startswith("sha256:"), told
    assert (told["edgent.cut"], told["edgent.placement"]) == (CUT, "split"), told
    assert told["edgent.deadline_met"] is True and told["edgent.degraded"] is False, told
    assert told["edgent.exit"] == values(plan)["edgent.exit"] == values(there)["edgent.exit"], told
    assert values(part)["edgent.from_segment"] == 0 and values(part)["edgent.to_segment"] == CUT
    assert values(there)["edgent.from_segment"] == CUT and values(there)["edgent.epoch"] == told["edgent.epoch"]
    assert values(wire)["edgent.bytes_sent"] > 0
    assert all(span.status.code == Status.STATUS_CODE_UNSET for _, span in spans)


def show(spans):
    """The trace, for people."""
    begun = min(span.start_time_unix_nano for _, span in spans)
    for service, span in sorted(spans, key=lambda one: one[1].start_time_unix_nano):
        at, took = (span.start_time_unix_nano - begun) / 1e6, (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        print(f"    {service:<14} {span.name:<8} {span.span_id.hex()} in {span.parent_span_id.hex()}  {at:6.2f} + {took:.2f} ms")


def main():
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bundle = build("models/branchy-alexnet/branchy-alexnet.onnx", f"{folder}/bundle")
        collector = Collector()
        services = ("edgent-device", "the-edge")
        edge_environment = collector.environment(OTEL_SERVICE_NAME=services[1])
        edge, edge_http = stack.enter_context(host("edge", bundle, env=edge_environment))
        waits = ["--edge", edge, "--deadline-ms", 20_000]
        device, device_http = stack.enter_context(host("device", bundle, *waits, env=collector.environment()))
        edgent("pin", "--to", device, "--exit", "exit3", "--cut", CUT, "--codec", "u8")

        ways = {
            "REST": lambda headers: ask(rest, device_http, headers),
            "gRPC": lambda headers: ask(grpc, device_http, headers),
            "the link": lambda headers: edgent("infer", EXAMPLES[0], "--device", device,
                                               env={name.upper(): value for name, value in headers.items()}),
        }
        for name, way in ways.items():
            caller = Caller()
            way({"traceparent": caller.traceparent})
            spans = collector.trace(caller.trace_id, 5)
            split(spans, caller, services)
            print(f"ok: asked by {name}, one trace over both hosts")
            show(spans)

        for traceparent in (None, "00-no-such-thing-01", Caller().traceparent.upper(), Caller().traceparent + "-more"):
            known = {span.trace_id for _, span in collector.spans}
            ask(rest, device_http, {"traceparent": traceparent} if traceparent else {})
            with collector.changed:
                roots = lambda: [span for _, span in collector.spans
                                 if span.trace_id not in known and span.name == "request"]
                assert collector.changed.wait_for(roots, PATIENCE_S)
                (root,) = roots()
            assert root.parent_span_id == b"" and len(collector.trace(root.trace_id, 5)) == 5
        print("ok: without a traceparent, or with what is none, a trace of its own")

        ignored, kept = Caller(is_sampled=False), Caller()
        for caller in (ignored, kept):
            ask(rest, device_http, {"traceparent": caller.traceparent})
        collector.trace(kept.trace_id, 5)
        assert not [span for _, span in collector.spans if span.trace_id == ignored.trace_id]
        print("ok: a trace that its caller does not keep is not told")

        caller = Caller()
        ask(rest, edge_http, {"traceparent": caller.traceparent})
        names = {span.name: span for _, span in collector.trace(caller.trace_id, 2)}
        assert names["request"].parent_span_id == caller.span_id
        assert names["part"].parent_span_id == names["request"].span_id
        print("ok: an edge that is asked itself")

        plain = ROOT / "target/release"
        silent, silent_http = stack.enter_context(host("device", bundle, *waits, env=collector.environment(), built=plain))
        edgent("pin", "--to", silent, "--exit", "exit3", "--cut", CUT)
        caller = Caller()
        ask(rest, silent_http, {"traceparent": caller.traceparent})
        ((service, span),) = collector.trace(caller.trace_id, 1)
        assert (service, span.name, span.parent_span_id) == (services[1], "part", caller.span_id)
        print("ok: a device that was built without it passes the caller's trace on to the edge")

        collector.server.shutdown()
        collector.server.server_close()
        begun = time.monotonic()
        for _ in range(20):
            said = ask(rest, device_http, {"traceparent": Caller().traceparent}).get_response()["parameters"]
            assert said["deadline_met"] and not said["degraded"], said
        print(f"ok: a collector that is gone costs no answer (20 in {time.monotonic() - begun:.1f} s)")
    print("ok: and hosts end in good order all the same")


if __name__ == "__main__":
    main()
