"""Record headers: CloudEvents in binary mode, W3C trace context, and the reasons in a dead letter."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.progress import Progress
from zimage_stream.events.prompt_request import PromptRequest

Header = tuple[str, bytes | None]
Headers = list[Header]

REQUEST_TYPE = "zimage.PromptRequest.v1"
RESULT_TYPE = "zimage.ImageResult.v1"
CANCELLATION_TYPE = "zimage.Cancellation.v1"
PROGRESS_TYPE = "zimage.Progress.v1"
MAX_HEADER_VALUE_BYTES = 2_000
"""Maximum size of a header value that we write, in bytes; longer ones are truncated."""

REPLAYS = "zimage.replays"
"""Name of the header that counts how often a record was replayed from the dead letters."""
REPLAY_OF = "zimage.replay-of"
"""Name of the header with the dead letter that was last replayed, as topic/partition/offset."""

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
"""Names of the headers with which a dead letter states why it failed, in addition to the record's own."""


VALUE_BYTES, VALUE_SHA256 = "zimage.value-bytes", "zimage.value-sha256"
"""Names of the headers with the size and hash of the full value, in a dead letter that has only its start."""
KEY_BYTES = "zimage.key-bytes"
"""Name of the header with the size of the record's key, in a dead letter without the key."""
HEADERS_LEFT_OUT = "zimage.headers-left-out"
"""Name of the header with the number of headers that a dead letter lacks; ``all`` if they were unreadable."""
CUTS = (VALUE_BYTES, VALUE_SHA256, KEY_BYTES, HEADERS_LEFT_OUT)
"""Names of the headers with which a dead letter states what did not fit into it."""

MAX_HEADERS = 100_000
"""Maximum number of headers of a record; librdkafka shows none of a record that has more."""
HEADER_OVERHEAD_BYTES = 10
"""Maximum overhead of one header in a record, in bytes: two lengths."""
MAX_TRACE_BYTES = 1_024


def request_headers(request: PromptRequest, source: str, extra: Iterable[Header] = ()) -> Headers:
    """Build the headers of a request.

    Args:
        source: URI reference of the sender.
        extra: the caller's own headers, such as ``traceparent``; they come last, unchanged.
    """
    at = request.created_at or datetime.now(UTC)
    return [*_cloud_event(request.request_id, source, REQUEST_TYPE, at), *extra]


def result_headers(result: ImageResult, request: Iterable[Header]) -> Headers:
    """Build the headers of a result, with the trace context of its request.

    The event's id is the location of the request's record, so a consumer can recognise a result that is
    published twice under at_least_once.

    Args:
        request: headers of the request's record.
    """
    source = result.source
    event_id = f"{source.topic}/{source.partition}/{source.offset}"
    return [
        *_cloud_event(event_id, f"/zimage/workers/{result.worker}", RESULT_TYPE, result.completed_at),
        *trace_context(request),
    ]


def cancellation_headers(cancellation: Cancellation, source: str) -> Headers:
    """Build the headers of a cancellation.

    Args:
        source: URI reference of the sender.
    """
    place = cancellation.source
    event_id = f"cancel/{place.topic}/{place.partition}/{place.offset}"
    return _cloud_event(event_id, source, CANCELLATION_TYPE, cancellation.requested_at)


def progress_headers(progress: Progress) -> Headers:
    """Build the headers of progress; each event has an id of its own."""
    place = progress.source
    moment = f"{progress.stage}/{progress.step}/{progress.at.timestamp():.3f}"
    event_id = f"{place.topic}/{place.partition}/{place.offset}/{moment}"
    return _cloud_event(event_id, f"/zimage/workers/{progress.worker}", PROGRESS_TYPE, progress.at)


def trace_context(headers: Iterable[Header]) -> Headers:
    """Extract the W3C trace context from headers: the first of each name, unless it is too long."""
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
    """Build the headers of a dead letter: the record's own, byte for byte, then why it failed.

    If a replayed record fails again, the new reasons replace the old ones; otherwise the headers would grow
    with every replay.
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
    """Return the record's original headers from those of its dead letter."""
    return [(name, value) for name, value in headers if name not in REASONS and name not in CUTS]


def size_of(headers: Iterable[Header]) -> int:
    """Return the maximum number of bytes that these headers take in a record."""
    return sum(len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers)


def fitting(headers: Iterable[Header], size: int, count: int) -> Headers:
    """Select the first headers that fit, in their order.

    Args:
        size: maximum total size, in bytes.
        count: maximum number of headers.
    """
    kept: Headers = []
    for header in headers:
        taken = size_of((header,))
        if len(kept) < count and taken <= size:
            kept.append(header)
            size -= taken
    return kept


def replay_headers(letter: Headers, *, topic: str, partition: int, offset: int) -> Headers:
    """Build the headers of a replayed record: its own, the number of replays, and its dead letter.

    Args:
        letter: headers of the dead letter at ``topic``, ``partition`` and ``offset``.
    """
    kept = [(name, value) for name, value in without_reasons(letter) if name not in (REPLAYS, REPLAY_OF)]
    count = replays_of(letter) + 1
    return [*kept, (REPLAYS, str(count).encode()), (REPLAY_OF, f"{topic}/{partition}/{offset}".encode())]


def replays_of(headers: Iterable[Header]) -> int:
    """Return how often the record with these headers was replayed; 0 if the header is absent or invalid."""
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
    if len(raw) <= MAX_HEADER_VALUE_BYTES:
        return raw
    return raw[:MAX_HEADER_VALUE_BYTES].decode(errors="ignore").encode() + "…".encode()
