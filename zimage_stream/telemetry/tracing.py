"""OpenTelemetry spans of a request: one for its processing and one for each stage, under its producer's.

The extra ``otel`` brings the SDK. Where spans go, how they are sampled and what else they carry is said by
the standard ``OTEL_*`` variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, …).
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
"""When each stage began and ended, in seconds of the wall clock (UNIX time), by its name."""

_LATEST_S = 9_223_372_036.0
"""In the year 2262; collectors keep nanoseconds in 63 bits."""


class Tracer(Protocol):
    """Takes requests that have ended. Called on the Kafka thread, so it must not wait."""

    def record(
        self,
        headers: Iterable[Header],
        stages: Stages,
        attributes: Mapping[str, str | int],
        error: str | None = None,
    ) -> None:
        """Make the spans of one request.

        Args:
            headers: of its record; its ``traceparent`` says whose trace this belongs to.
            stages: at least one.
            error: why it has no picture.
        """
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


class NoTracer:
    """Tracing is off."""

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
    """A tracer that exports by OTLP over HTTP, if it is wanted.

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
            f"ZIMAGE_TELEMETRY__TRACES: got true, which cannot be done: {error}; "
            "pip install 'zimage-stream[otel]'"
        ) from error
    return OpenTelemetryTracer(slot, BatchSpanProcessor(OTLPSpanExporter()))


class OpenTelemetryTracer:
    """Makes spans with the SDK.

    Args:
        slot: of the worker, ``service.instance.id`` of its spans.
        processor: takes the spans that have ended.
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
            # A trace is a convenience; the request is answered, and must stay so.
            log.exception("a request's spans could not be made")

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
    """An attribute's value: a refused request may have an id of megabytes, and the SDK sends all of it."""
    return shortened(value, NAME_CHARACTERS) if isinstance(value, str) else value


def _ns(seconds: float) -> int:
    """Nanoseconds as OTLP can carry them: one span whose request says 1960 would lose its whole batch."""
    return round(min(max(seconds, 0.0), _LATEST_S) * 1e9)
