"""The spans of a request, as the SDK's in-memory exporter receives them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from zimage_stream.events.headers import Header
from zimage_stream.telemetry.tracing import NoTracer, OpenTelemetryTracer, create_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = {"wait": (100.0, 101.5), "generate": (101.5, 102.0), "publish": (102.25, 102.25)}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Iterator[OpenTelemetryTracer]:
    tracer = OpenTelemetryTracer("gpu/0", SimpleSpanProcessor(exporter))
    yield tracer
    tracer.close()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def test_stages_are_children_of_the_producers_span(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter
) -> None:
    headers: list[Header] = [("TraceParent", f"00-{TRACE}-{PARENT}-01".encode()), ("tracestate", b"a=b")]
    tracer.record(headers, STAGES, {"messaging.system": "kafka"})
    spans = by_name(exporter)
    assert spans.keys() == {"process request", *STAGES}
    whole = spans["process request"]
    assert whole.context is not None
    assert whole.parent is not None
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert (whole.start_time, whole.end_time) == (100 * 10**9, 102_250_000_000)
    assert (whole.attributes or {})["messaging.system"] == "kafka"
    assert whole.resource.attributes["service.instance.id"] == "gpu/0"
    for name, (start, end) in STAGES.items():
        span = spans[name]
        assert span.parent is not None
        assert span.parent.span_id == whole.context.span_id
        assert (span.start_time, span.end_time) == (start * 1e9, end * 1e9)


def test_a_request_without_an_image_is_an_error(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter
) -> None:
    tracer.record([], STAGES, {}, "OUT_OF_MEMORY")
    status = by_name(exporter)["process request"].status
    assert (status.status_code, status.description) == (StatusCode.ERROR, "OUT_OF_MEMORY")


def test_attributes_are_bounded(tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter) -> None:
    tracer.record(
        [], STAGES, {"messaging.message.id": "x" * (4 << 20), "zimage.attempts": 2}, "y" * (4 << 20)
    )
    span = by_name(exporter)["process request"]
    attributes = span.attributes or {}
    assert str(attributes["messaging.message.id"]).endswith("(4194304 characters)")
    assert len(str(attributes["messaging.message.id"])) < 300
    assert attributes["zimage.attempts"] == 2
    assert len(span.status.description or "") < 3_000


@pytest.mark.parametrize(
    "parent", [None, b"", b"\xff\xfe", b"00-zz-zz-01", b"00-" + b"0" * 32, b"x" * 10_000]
)
def test_an_invalid_parent_is_ignored(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter, parent: bytes | None
) -> None:
    tracer.record([("traceparent", parent)], STAGES, {})
    assert by_name(exporter)["process request"].parent is None


times = st.floats(allow_nan=False)


@given(st.dictionaries(st.sampled_from(["wait", "generate"]), st.tuples(times, times), min_size=1))
@example({"wait": (datetime(1960, 1, 1, tzinfo=UTC).timestamp(), 1_700_000_000.0)})
@example({"wait": (datetime(9999, 1, 1, tzinfo=UTC).timestamp(), 1_700_000_000.0)})
def test_extreme_times_of_a_request_do_not_block_other_spans(
    stages: dict[str, tuple[float, float]],
) -> None:
    exporter = InMemorySpanExporter()
    tracer = OpenTelemetryTracer("gpu/0", SimpleSpanProcessor(exporter))
    tracer.record([], stages, {})
    tracer.record([], STAGES, {})
    spans = exporter.get_finished_spans()
    assert len(spans) == len(stages) + len(STAGES) + 2
    assert encode_spans(spans).SerializeToString()


def test_a_request_that_cannot_be_traced_is_logged_and_ignored(
    tracer: OpenTelemetryTracer, exporter: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    tracer.record([], {}, {})
    assert exporter.get_finished_spans() == ()
    assert "could not record the spans" in caplog.text


def test_tracing_is_off_by_default() -> None:
    assert isinstance(create_tracer(False, "s"), NoTracer)
