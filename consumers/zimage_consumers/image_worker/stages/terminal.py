"""Builds the terminal event of a request from how its job ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256

from zimage_consumers.image_worker.group.publish import OutgoingRecord
from zimage_consumers.image_worker.window.jobs import Job, Resolution
from zimage_stream.escaping import shortened
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import (
    CUTS,
    HEADERS_LEFT_OUT,
    KEY_BYTES,
    MAX_HEADERS,
    VALUE_BYTES,
    VALUE_SHA256,
    Header,
    Headers,
    dead_letter_headers,
    fitting,
    result_headers,
    size_of,
    without_reasons,
)
from zimage_stream.events.image_result import Code, Failure, ImageResult, Status, Timing
from zimage_stream.kafka.clients import MAX_MESSAGE_BYTES
from zimage_stream.kafka.record import Record
from zimage_stream.settings import TopicSettings


@dataclass(frozen=True, slots=True)
class Identity:
    """The worker and model that results and dead letters name."""

    model: str
    model_revision: str
    slot: str


BATCH_BYTES = 1 << 10
"""Bytes of a batch and of a record in it, in addition to key, value and headers."""
STUB_BYTES = 16 << 10
"""Size of a record, in bytes, that every topic accepts."""
HEAD_BYTES = 64 << 10
"""Bytes at the start of a value that are carried before anything else."""
MAX_NAME, MAX_MESSAGE = 128, 1_900
"""Limits in characters. An ASCII message of this length fits a dead letter's header of 2,000 bytes."""
_CUTS_BYTES = 512
"""Upper bound on the bytes that :data:`CUTS` take."""

_STATUS = {None: Status.SUCCEEDED, Code.EXPIRED: Status.EXPIRED, Code.CANCELLED: Status.CANCELLED}


def status_of(code: Code | None) -> Status:
    """The status of a request that ends with this code."""
    return _STATUS.get(code, Status.FAILED)


def result_of(resolution: Resolution, identity: Identity, at: datetime) -> ImageResult | None:
    """The result of a job that ended, or ``None`` where the record does not tell who asked.

    Args:
        at: the moment just before the commit.
    """
    job, code = resolution.job, resolution.code
    request = job.request
    if request is None:
        return None
    return ImageResult(
        request_id=request.request_id,
        tenant=request.tenant,
        batch_id=request.batch_id,
        attributes=request.attributes,
        status=status_of(code),
        attempts=job.attempts,
        image=resolution.image,
        error=_failure(resolution),
        timing=_timing(job, at),
        model=identity.model,
        model_revision=identity.model_revision,
        worker=identity.slot,
        source=job.record.source,
        requested_at=job.requested_at,
        started_at=job.timings.started_at,
        completed_at=at,
    )


def _failure(resolution: Resolution) -> Failure | None:
    if resolution.code is None:
        return None
    return Failure(code=resolution.code, message=message_of(resolution), retriable=resolution.retriable)


def message_of(resolution: Resolution) -> str:
    """Why there is no image, for people; bounded in length, whoever's words it quotes."""
    return shortened(str(resolution.cause or resolution.code or ""), MAX_MESSAGE)


def records_of(
    resolution: Resolution,
    topics: TopicSettings,
    codec: Codec,
    identity: Identity,
    at: datetime,
) -> list[OutgoingRecord]:
    """The records to produce for a job that ended: its result, its dead letter, or both.

    What does not fit into a record is cut, and the record states that.

    Raises:
        RegistryUnavailableError: the schema id of results is unavailable at the moment.
    """
    limit = STUB_BYTES if resolution.job.cut else MAX_MESSAGE_BYTES - BATCH_BYTES
    out = []
    result = result_of(resolution, identity, at)
    if result is not None:
        out.append(_result_record(result, resolution.job.record, topics.results, codec, limit))
    if resolution.dead and resolution.code is not None:
        out.append(_dead_letter(resolution, topics.dead_letters, identity, at, limit))
    return out


def _result_record(
    result: ImageResult, record: Record, topic: str, codec: Codec, limit: int
) -> OutgoingRecord:
    def made(result: ImageResult) -> OutgoingRecord:
        key, value = result.request_id.encode(), codec.encode_result(result, topic)
        return OutgoingRecord(topic, key, value, result_headers(result, record.headers))

    whole = made(result)
    return whole if whole.size <= limit else made(_abridged(result))


def _abridged(result: ImageResult) -> ImageResult:
    """Cut a result whose request's own fields are so long that no record holds them. Only a request refused
    for their length has such fields."""
    error = result.error and replace(
        result.error,
        message=f"{result.error.message} (the request's own fields are cut here: they would not fit into a "
        f"result)",
    )
    return replace(
        result,
        request_id=result.request_id[:MAX_NAME],
        tenant=result.tenant[:MAX_NAME],
        batch_id=result.batch_id and result.batch_id[:MAX_NAME],
        attributes={},
        error=error,
    )


def _dead_letter(
    resolution: Resolution, topic: str, identity: Identity, at: datetime, limit: int
) -> OutgoingRecord:
    job, record, cause = resolution.job, resolution.job.record, resolution.cause
    code = resolution.code or ""
    reasons = dead_letter_headers(
        (),
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        exception_class=type(cause).__name__ if cause else code,
        message=message_of(resolution),
        code=code,
        attempts=job.attempts,
        worker=identity.slot,
        at=at,
    )
    return build_dead_letter(record, reasons, topic, limit)


def build_dead_letter(record: Record, reasons: Headers, topic: str, limit: int) -> OutgoingRecord:
    """Build the dead letter of a record: byte for byte where it fits, otherwise as much as fits. Pure.

    In this order, each where there is room left: the head of the value, to show what it is; the key; the rest
    of the value; each header. A value of up to :data:`HEAD_BYTES`, and therefore that of every valid request,
    is all head. Size and hash tell what was left out, and the record itself remains at its offset.

    Args:
        reasons: the headers that say why the record failed.
        limit: total bytes; larger than what the reasons and :data:`CUTS` take.
    """
    key, value, cuts = record.key, record.value, list[Header]()
    own = without_reasons(record.headers)
    whole = OutgoingRecord(topic, key, value, [*own, *reasons])
    if whole.size <= limit and len(whole.headers) <= MAX_HEADERS and record.headers_lost is None:
        return whole
    room = limit - size_of(reasons) - _CUTS_BYTES
    head = _head(value or b"", room)
    if key is not None and len(key) > room - len(head):
        cuts.append((KEY_BYTES, str(len(key)).encode()))
        key = None
    room -= len(key or b"")
    if value is not None and len(value) > room:
        cuts.append((VALUE_BYTES, str(len(value)).encode()))
        cuts.append((VALUE_SHA256, sha256(value).hexdigest().encode()))
        value = head
    room -= len(value or b"")
    kept = fitting(own, room, MAX_HEADERS - len(reasons) - len(CUTS))
    if record.headers_lost is not None:
        cuts.append((HEADERS_LEFT_OUT, b"all"))
    elif len(kept) < len(own):
        cuts.append((HEADERS_LEFT_OUT, str(len(own) - len(kept)).encode()))
    return OutgoingRecord(topic, key, value, [*kept, *reasons, *cuts])


def _head(value: bytes, room: int) -> bytes:
    """The head of a value. Unless the value is small and fits whole, half the room is left for the rest."""
    if len(value) <= min(HEAD_BYTES, room):
        return value
    return value[: max(0, min(HEAD_BYTES, room // 2))]


def _timing(job: Job, at: datetime) -> Timing:
    timings = job.timings
    return Timing(
        queued_ms=timings.queued_ms,
        generate_ms=timings.generate_ms,
        encode_ms=timings.encode_ms,
        upload_ms=timings.upload_ms,
        total_ms=max(0.0, (at - job.requested_at).total_seconds() * 1e3),
    )
