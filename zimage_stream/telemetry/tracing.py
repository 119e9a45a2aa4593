"""OpenTelemetry spans of requests: one for the processing and one for each stage, in the producer's trace.

The extra ``otel`` installs the SDK. The standard ``OTEL_*`` variables (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_TRACES_SAMPLER``, …) configure the export, the sampling and further attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from zimage_stream.errors import SettingsError
from zimage_stream.escaping import NAME_CHARACTERS, shortened
from zimage_stream.events.headers import Header, trace_context

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

log = logging.getLogger(__name__)

Stages = Mapping[str, tuple[float, float]]
"""Start and end of each stage by its name, as UNIX time in seconds."""

_LATEST_S = 9_223_372_036.0
"""Latest time that a span can have, in the year 2262: collectors store nanoseconds in 63 bits."""


class Tracer(Protocol):
    """Records requests that have ended. It is called on the Kafka thread, so it must not block."""

    def record(
        self,
        headers: Iterable[Header],
        stages: Stages,
        attributes: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        """Record the spans of one request.

        Args:
            headers: headers of the request's record; ``traceparent`` names the trace.
            stages: at least one stage.
            attributes: attributes of the span.
            error: why there is no image; ``None`` if there is one.
        """
        ...

    def close(self) -> None:
        """Export the remaining spans."""
        ...


class NoTracer:
    """The tracer that is used while tracing is off."""

    def record(
        self,
        headers: Iterable[Header],
        stages: Stages,
        attributes: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        return

    def close(self) -> None:
        return


def create_tracer(wanted: bool, slot: str) -> Tracer:
    """Create a tracer that exports by OTLP over HTTP, or does nothing if tracing is off.

    Raises:
        SettingsError: the SDK is not installed.
    """
    if not wanted:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"ZIMAGE_TELEMETRY__TRACES: got true, which needs the extra otel: {error}; "
            "pip install 'zimage-stream[otel]'"
        ) from error
    return OpenTelemetryTracer(slot, BatchSpanProcessor(OTLPSpanExporter()))


class OpenTelemetryTracer:
    """Creates spans with the SDK.

    Args:
        slot: the worker's slot, which becomes ``service.instance.id`` of its spans.
        processor: receives the ended spans.
    """

    def __init__(self, slot: str, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({"service.instance.id": slot})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "zimage-worker"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("zimage_stream")

    def record(
        self,
        headers: Iterable[Header],
        stages: Stages,
        attributes: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        """See :class:`Tracer`."""
        try:
            self._record(headers, stages, attributes, error)
        except Exception:
            # Tracing is optional; a failure must not affect a request that has been answered.
            log.exception("could not record the spans of a request")

    def _record(
        self,
        headers: Iterable[Header],
        stages: Stages,
        attributes: Mapping[str, str | int],
        error: str | None,
    ) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {name.lower(): (value or b"").decode("latin-1") for name, value in trace_context(headers)}
        span = self._tracer.start_span(
            "process request",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.CONSUMER,
            attributes={name: _bounded(value) for name, value in attributes.items()},
            start_time=_ns(min(start for start, _ in stages.values())),
        )
        inside = set_span_in_context(span)
        for name, (start, end) in stages.items():
            self._tracer.start_span(name, context=inside, start_time=_ns(start)).end(_ns(max(start, end)))
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, shortened(error)))
        span.end(_ns(max(end for _, end in stages.values())))

    def close(self) -> None:
        """See :class:`Tracer`."""
        self._provider.shutdown()


def _bounded(value: str | int) -> str | int:
    """Shorten an attribute: a rejected request may have an id of megabytes, which the SDK would send."""
    return shortened(value, NAME_CHARACTERS) if isinstance(value, str) else value


def _ns(seconds: float) -> int:
    """Convert to nanoseconds within OTLP's range: one span from the year 1960 would lose its whole batch."""
    return round(min(max(seconds, 0.0), _LATEST_S) * 1e9)
