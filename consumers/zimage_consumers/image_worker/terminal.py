"""The terminal event of a request, made from how its job ended. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from zimage_consumers.image_worker.jobs import Job, Resolution
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import Headers, dead_letter_headers, result_headers
from zimage_stream.events.image_result import Code, Failure, ImageResult, Status, Timing
from zimage_stream.settings import TopicSettings


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers: as results and dead letters name it."""

    model: str
    model_revision: str
    slot: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to produce."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers


_STATUS = {None: Status.SUCCEEDED, Code.EXPIRED: Status.EXPIRED, Code.CANCELLED: Status.CANCELLED}


def result_of(resolution: Resolution, identity: Identity, at: datetime) -> ImageResult | None:
    """The result of a job that ended, or ``None`` where nobody could read who asked.

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
        status=_STATUS.get(code, Status.FAILED),
        attempts=job.attempts,
        image=resolution.image,
        error=_failure(resolution),
        timing=_timing(job, at),
        model=identity.model,
        model_revision=identity.model_revision,
        worker=identity.slot,
        source=job.record.source,
        requested_at=job.requested_at,
        started_at=job.started_at,
        completed_at=at,
    )


def _failure(resolution: Resolution) -> Failure | None:
    if resolution.code is None:
        return None
    return Failure(code=resolution.code, message=message_of(resolution), retriable=resolution.retriable)


def message_of(resolution: Resolution) -> str:
    """Why there is no picture, for people."""
    return str(resolution.cause or resolution.code or "")


def records_of(
    resolution: Resolution, topics: TopicSettings, codec: Codec, identity: Identity, at: datetime
) -> list[Outgoing]:
    """What is produced for a job that ended: its result, its dead letter, or both.

    Raises:
        RegistryUnavailableError: the result's schema id cannot be had now.
    """
    job, code = resolution.job, resolution.code
    record = job.record
    out = []
    result = result_of(resolution, identity, at)
    if result is not None:
        out.append(
            Outgoing(
                topics.results,
                result.request_id.encode(),
                codec.encode_result(result, topics.results),
                result_headers(result, list(record.headers)),
            )
        )
    if resolution.dead and code is not None:
        cause = resolution.cause
        headers = dead_letter_headers(
            list(record.headers),
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
        out.append(Outgoing(topics.dead_letters, record.key, record.value, headers))
    return out


def _timing(job: Job, at: datetime) -> Timing:
    return Timing(
        queued_ms=job.queued_ms,
        generate_ms=job.generate_ms,
        encode_ms=job.encode_ms,
        upload_ms=job.upload_ms,
        total_ms=max(0.0, (at - job.requested_at).total_seconds() * 1e3),
    )
