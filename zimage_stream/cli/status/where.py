"""The search for one request: its result, or its position in the backlog."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from confluent_kafka import OFFSET_BEGINNING

from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.cli.status.backlog import Backlog, resolved_below
from zimage_stream.errors import RegistryUnavailableError, WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings


class Phase(StrEnum):
    """The state of an unresolved request."""

    WAITING = "waiting"
    RUNNING = "running"
    SUSPECT = "suspect"
    UNCOMMITTED = "uncommitted"


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A request's record without a terminal event.

    Attributes:
        ahead: number of unresolved requests before it in its partition. They need not run first: workers
            choose among all fetched requests, fairly between tenants.
        attempts: number of starts charged to it.
        worker: the worker that owns its partition; ``None`` if there is none.
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
    """Yield the unresolved records of a request. Raises as ``TopicReader``."""
    partitions = {p.number: p for p in backlog.partitions}
    for record, is_uncommitted in _unresolved(settings, backlog):
        partition = partitions[record.partition]
        held, offset = partition.checkpoint, record.offset
        if held.is_resolved(offset) or not _may_hold(record, request_id):
            continue
        try:
            request = codec.decode_request(record.value)
        except (WireError, RegistryUnavailableError):
            continue
        if request.request_id == request_id and tenant in (None, request.tenant):
            yield Unresolved(
                request_id,
                request.tenant,
                record.partition,
                offset,
                record.timestamp,
                Phase.UNCOMMITTED if is_uncommitted else phase_of(held, offset),
                unresolved_before(held, offset),
                held.marks.get(offset, Mark()).attempts,
                partition.worker,
            )


def _unresolved(settings: Settings, backlog: Backlog) -> Iterator[tuple[Record, bool]]:
    """Yield records of partitions with a backlog, and whether each lies behind an open transaction."""
    topic = settings.topics.requests
    bases = {p.number: p.checkpoint.base for p in backlog.partitions if p.unresolved}
    for record in _read(settings, topic, bases):
        yield record, False
    behind = {p.number: p.transaction.offset for p in backlog.partitions if p.transaction}
    for record in _read(settings, topic, behind, uncommitted=True):
        yield record, True


def phase_of(checkpoint: Checkpoint, offset: int) -> Phase:
    """Return the state of an unresolved offset, according to the checkpoint."""
    mark = checkpoint.marks.get(offset)
    if mark is None or not (mark.open or mark.suspect):
        return Phase.WAITING
    return Phase.RUNNING if mark.open else Phase.SUSPECT


def unresolved_before(checkpoint: Checkpoint, offset: int) -> int:
    """Count the unresolved offsets below ``offset``."""
    return max(0, offset - checkpoint.base) - resolved_below(checkpoint, offset)


def find_results(
    settings: Settings, partitions: Iterable[int], codec: Codec, request_id: str, tenant: str | None
) -> Iterator[ImageResult]:
    """Yield the results of a request in these partitions, oldest first in each. Raises as ``TopicReader``."""
    for record in _read(settings, settings.topics.results, dict.fromkeys(partitions, OFFSET_BEGINNING)):
        if not _may_hold(record, request_id):
            continue
        try:
            result = codec.decode_result(record.value)
        except (WireError, SchemaUnavailableError):
            continue
        if result.request_id == request_id and tenant in (None, result.tenant):
            yield result


def _may_hold(record: Record, request_id: str) -> bool:
    """Whether a record may belong to a request; a cheap test, since decoding a long topic takes too long."""
    return record.value is not None and request_id.encode() in record.value


def _read(
    settings: Settings, topic: str, starts: dict[int, int], *, uncommitted: bool = False
) -> Iterator[Record]:
    if not starts:
        return
    with TopicReader(settings.kafka, topic, uncommitted=uncommitted) as reader:
        reader.start(starts)
        yield from reader.read_to_end()
