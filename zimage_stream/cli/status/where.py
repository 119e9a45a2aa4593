"""Where one request is: what came of it, or where it waits."""

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
    """Records where something is unresolved, and whether they lie behind an open transaction."""
    topic = settings.topics.requests
    bases = {p.number: p.checkpoint.base for p in backlog.partitions if p.unresolved}
    for record in _read(settings, topic, bases):
        yield record, False
    behind = {p.number: p.transaction.offset for p in backlog.partitions if p.transaction}
    for record in _read(settings, topic, behind, uncommitted=True):
        yield record, True


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
    """Whether it is worth decoding; all of a long topic would take longer than the answer is worth."""
    return record.value is not None and request_id.encode() in record.value


def _read(
    settings: Settings, topic: str, starts: dict[int, int], *, uncommitted: bool = False
) -> Iterator[Record]:
    if not starts:
        return
    with TopicReader(settings.kafka, topic, uncommitted=uncommitted) as reader:
        reader.start(starts)
        yield from reader.read_to_end()
