"""Metrics under load, spans as a collector receives them, and prompts in logs only where enabled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fleet.arena import Arena
from tests.fleet.workers import WorkerProcess, until
from tests.integration.test_health import samples
from zimage_stream import PromptClient, PromptRequest

TRACE = "0af7651916cd43dd8448eb211c80319c"


def image_request(prompt: str = "a picture", tenant: str = "default") -> PromptRequest:
    return PromptRequest(prompt=prompt, width=64, height=64, tenant=tenant)


def by_label(worker: WorkerProcess, metric: str) -> dict[str, float]:
    return {label: value for (name, label), value in samples(worker).items() if name == metric}


def test_a_thousand_tenants_make_fifty_series(arena: Arena) -> None:
    # Slow enough that none is resolved during the test.
    worker = arena.fleet.start(
        "worker", ZIMAGE_ENGINE__SIMULATED_MS="10000000", ZIMAGE_TELEMETRY__TENANT_LABEL="true"
    ).wait_ready()
    arena.send([image_request(tenant=f"tenant-{number}") for number in range(1_000)])

    def waiting() -> dict[str, float]:
        return by_label(worker, "zimage_queue_requests")

    queues = until(lambda: sum(waiting().values()) > 900 and waiting(), 30, "all are in the window")
    assert len(queues) == 51
    assert queues["(others)"] > 900
    unresolved = by_label(worker, "zimage_unresolved_requests")
    assert (len(unresolved), sum(unresolved.values())) == (12, 1_000)
    found = samples(worker)
    assert found["zimage_desired_workers", ""] >= 1
    assert found["process_resident_memory_bytes", ""] > 0


class Collector:
    """Receives spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


def test_a_request_is_traced_under_its_producers_trace(arena: Arena, collector: Collector) -> None:
    arena.fleet.start(
        "worker",
        ZIMAGE_ENGINE__SIMULATED_MS="0",
        ZIMAGE_TELEMETRY__TRACES="true",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.address,
        OTEL_BSP_SCHEDULE_DELAY="100",
    ).wait_ready()
    with PromptClient(arena.settings) as client:
        request = image_request()
        client.submit(request, headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
        client.wait(request.request_id, 30)
    spans = until(lambda: len(collector.spans) >= 7 and collector.spans, 30, "its spans have arrived")
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    names = {span.name: span for span in spans}
    stages = {"decode", "mark", "look up", "wait", "generate", "encode", "upload", "publish"}
    assert names.keys() == {"process request", *stages}
    whole = names.pop("process request")
    said = {each.key: each.value.string_value for each in whole.attributes}
    assert said["messaging.message.id"] == request.request_id
    for span in names.values():
        assert span.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= whole.end_time_unix_nano


def test_prompts_are_logged_if_the_setting_asks_for_it(arena: Arena) -> None:
    worker = arena.fleet.start(
        "worker", ZIMAGE_ENGINE__SIMULATED_MS="0", ZIMAGE_TELEMETRY__LOG_PROMPTS="true"
    ).wait_ready()
    arena.send([image_request("a wish for everybody")])
    arena.wait_answered(30)
    until(
        lambda: any(line.get("prompt") == "a wish for everybody" for line in worker.lines()),
        10,
        "it is logged",
    )
