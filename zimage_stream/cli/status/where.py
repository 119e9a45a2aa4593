"""Where one request is: what came of it, or where it waits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain

from confluent_kafka import OFFSET_BEGINNING, Message

from zimage_stream.checkpoint import Checkpoint
from zimage_stream.cli.status.backlog import Backlog, resolved_below
from zimage_stream.errors import RegistryUnavailableError, WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.reader import TopicReader, record_time
from zimage_stream.settings import Settings

_POLL_S = 0.2


class Phase(StrEnum):
    """How far an unresolved request has come."""

    WAITING = "waiting"
    RUNNING = "running"
    SUSPECT = "suspect"
    UNCOMMITTED = "uncommitted"


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A request's record without a terminal event.

    Attributes:
        ahead: unresolved requests before it in its partition. Not its turn: workers choose among all
            they have fetched, fairly between tenants.
        attempts: starts that are charged to it.
        worker: who holds its partition, if anybody does.
    """

    request_id: str
    tenant: str
    partition: int
    offset: int
    written_at: datetime
    phase: Phase
    ahead: int
    attempts: int
    worker: str | None


def find_unresolved(
    settings: Settings, backlog: Backlog, codec: Codec, request_id: str, tenant: str | None
) -> Iterator[Unresolved]:
    """Records of this request that the backlog holds. Raises as ``TopicReader``."""
    topic = settings.topics.requests
    starts = {p.number: p.checkpoint.base for p in backlog.partitions if p.unresolved}
    behind = {p.number: p.transaction.offset for p in backlog.partitions if p.transaction}
    readable = ((message, False) for message in _read(settings, topic, starts))
    uncommitted = ((message, True) for message in _read(settings, topic, behind, uncommitted=True))
    partitions = {p.number: p for p in backlog.partitions}
    for message, is_behind in chain(readable, uncommitted):
        number, offset = message.partition(), message.offset()
        assert number is not None
        assert offset is not None
        held = partitions[number].checkpoint
        value = message.value()
        # Decoding all of a long backlog would take longer than the answer is worth.
        if held.is_resolved(offset) or not value or request_id.encode() not in _bytes(value):
            continue
        try:
            request = codec.decode_request(_bytes(value))
        except (WireError, RegistryUnavailableError):
            continue
        if request.request_id == request_id and tenant in (None, request.tenant):
            mark = held.marks.get(offset)
            yield Unresolved(
                request_id,
                request.tenant,
                number,
                offset,
                record_time(message),
                Phase.UNCOMMITTED if is_behind else phase_of(held, offset),
                unresolved_before(held, offset),
                mark.attempts if mark else 0,
                partitions[number].worker,
            )


def phase_of(checkpoint: Checkpoint, offset: int) -> Phase:
    """What the checkpoint says of an unresolved offset."""
    mark = checkpoint.marks.get(offset)
    if mark is None or not (mark.open or mark.suspect):
        return Phase.WAITING
    return Phase.RUNNING if mark.open else Phase.SUSPECT


def unresolved_before(checkpoint: Checkpoint, offset: int) -> int:
    """How many offsets below this one are not resolved."""
    return max(0, offset - checkpoint.base) - resolved_below(checkpoint, offset)


def find_results(
    settings: Settings, partitions: Iterable[int], codec: Codec, request_id: str, tenant: str | None
) -> Iterator[ImageResult]:
    """Results of this request in these partitions, oldest first in each. Raises as ``TopicReader``."""
    for message in _read(settings, settings.topics.results, dict.fromkeys(partitions, OFFSET_BEGINNING)):
        value = message.value()
        if not value or request_id.encode() not in _bytes(value):
            continue
        try:
            result = codec.decode_result(_bytes(value))
        except (WireError, SchemaUnavailableError):
            continue
        if result.request_id == request_id and tenant in (None, result.tenant):
            yield result


def _read(
    settings: Settings, topic: str, starts: dict[int, int], *, uncommitted: bool = False
) -> Iterator[Message]:
    if not starts:
        return
    with TopicReader(settings.kafka, topic, uncommitted=uncommitted) as reader:
        reader.start(starts)
        while not reader.caught_up:
            message = reader.poll(_POLL_S)
            if message is not None:
                yield message
            elif reader.trouble is not None:
                raise reader.trouble


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
