"""Record headers: CloudEvents in binary mode, W3C trace context, and what a dead letter says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.prompt_request import PromptRequest

Header = tuple[str, bytes | None]
Headers = list[Header]

REQUEST_TYPE = "zimage.PromptRequest.v1"
RESULT_TYPE = "zimage.ImageResult.v1"
MAX_MESSAGE_BYTES = 2_000

REPLAYS = "zimage.replays"
"""How often this record was replayed from the dead letters."""
REPLAY_OF = "zimage.replay-of"
"""The dead letter it was last replayed from, as topic/partition/offset."""

_TRACE = ("traceparent", "tracestate")
REASONS = (
    "__connect.errors.topic",
    "__connect.errors.partition",
    "__connect.errors.offset",
    "__connect.errors.exception.class.name",
    "__connect.errors.exception.message",
    "zimage.code",
    "zimage.attempts",
    "zimage.worker",
    "zimage.time",
)
"""What a dead letter says of its death, beside the record's own headers."""


VALUE_BYTES, VALUE_SHA256 = "zimage.value-bytes", "zimage.value-sha256"
"""Of the record's value, in a dead letter that has only its first bytes."""
KEY_BYTES = "zimage.key-bytes"
"""Of the record's key, in a dead letter that does not have it."""
HEADERS_LEFT_OUT = "zimage.headers-left-out"
"""How many of the record's headers a dead letter does not have; ``all`` where nobody could read them."""
CUTS = (VALUE_BYTES, VALUE_SHA256, KEY_BYTES, HEADERS_LEFT_OUT)
"""What a dead letter says of what did not fit into it."""

MAX_HEADERS = 100_000
"""librdkafka shows none at all of a record that has more."""
HEADER_OVERHEAD_BYTES = 10
"""Of a header, two lengths at the most."""
MAX_TRACE_BYTES = 1_024


def request_headers(request: PromptRequest, source: str, extra: Iterable[Header] = ()) -> Headers:
    """Headers of a request.

    Args:
        source: URI reference of who sends it.
        extra: the caller's own, its ``traceparent`` among them; they come last, untouched.
    """
    at = request.created_at or datetime.now(UTC)
    return [*_cloud_event(request.request_id, source, REQUEST_TYPE, at), *extra]


def result_headers(result: ImageResult, request: Iterable[Header]) -> Headers:
    """Headers of a result, in the trace of the request with these headers.

    The event's id is made of the request record's place, so a result published again under
    at_least_once is recognised by it.
    """
    source = result.source
    event_id = f"{source.topic}/{source.partition}/{source.offset}"
    return [
        *_cloud_event(event_id, f"/zimage/workers/{result.worker}", RESULT_TYPE, result.completed_at),
        *trace_context(request),
    ]


def trace_context(headers: Iterable[Header]) -> Headers:
    """The W3C trace context among these headers: one of each, and none that is too long to be one."""
    found: dict[str, Header] = {}
    for name, value in headers:
        if name.lower() in _TRACE and len(value or b"") <= MAX_TRACE_BYTES:
            found.setdefault(name.lower(), (name, value))
    return list(found.values())


def dead_letter_headers(
    original: Iterable[Header],
    *,
    topic: str,
    partition: int,
    offset: int,
    exception_class: str,
    message: str,
    code: str,
    attempts: int,
    worker: str,
    at: datetime,
) -> Headers:
    """Headers of a dead letter: the record's own, byte for byte, then why it died.

    A record that was replayed and dies again has its former reasons replaced: they would grow with
    every round.
    """
    values = (
        topic,
        str(partition),
        str(offset),
        exception_class,
        message,
        code,
        str(attempts),
        worker,
        at.isoformat(timespec="milliseconds"),
    )
    reasons = zip(REASONS, values, strict=True)
    return [*without_reasons(original), *((name, _bounded(text)) for name, text in reasons)]


def without_reasons(headers: Iterable[Header]) -> Headers:
    """A dead letter's headers as the record had them."""
    return [(name, value) for name, value in headers if name not in REASONS and name not in CUTS]


def size_of(headers: Iterable[Header]) -> int:
    """The most bytes that these headers take in a record."""
    return sum(len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers)


def fitting(headers: Iterable[Header], size: int, count: int) -> Headers:
    """Those that fit into so many bytes and are no more than so many, in their order; the first go first."""
    kept: Headers = []
    for header in headers:
        taken = size_of((header,))
        if len(kept) < count and taken <= size:
            kept.append(header)
            size -= taken
    return kept


def replay_headers(letter: Headers, *, topic: str, partition: int, offset: int) -> Headers:
    """Headers of a dead letter that is replayed: the record's own, how often, and which letter it was.

    Args:
        letter: headers of the dead letter at ``topic``, ``partition`` and ``offset``.
    """
    kept = [(name, value) for name, value in without_reasons(letter) if name not in (REPLAYS, REPLAY_OF)]
    count = replays_of(letter) + 1
    return [*kept, (REPLAYS, str(count).encode()), (REPLAY_OF, f"{topic}/{partition}/{offset}".encode())]


def replays_of(headers: Iterable[Header]) -> int:
    """How often the record with these headers was replayed; 0 too where it says nonsense."""
    values = [value for name, value in headers if name == REPLAYS and value is not None]
    return int(values[-1]) if values and re.fullmatch(rb"[0-9]{1,6}", values[-1]) else 0


def _cloud_event(event_id: str, source: str, kind: str, at: datetime) -> Headers:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", _bounded(event_id)),
        ("ce_source", _bounded(source)),
        ("ce_type", kind.encode()),
        ("ce_time", at.isoformat(timespec="milliseconds").encode()),
        ("content-type", b"application/avro"),
    ]


def _bounded(text: str) -> bytes:
    raw = text.encode(errors="replace")
    if len(raw) <= MAX_MESSAGE_BYTES:
        return raw
    return raw[:MAX_MESSAGE_BYTES].decode(errors="ignore").encode() + "…".encode()
