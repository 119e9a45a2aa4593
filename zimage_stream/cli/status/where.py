"""The search for requests: their results, or their positions in the backlog."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from confluent_kafka import OFFSET_BEGINNING

from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.cli.status.backlog import Backlog, resolved_below
from zimage_stream.errors import WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings

_FEW = 8
"""Up to so many ids it is faster to search a record for each of them than to decode it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requests to find: those with these ids, or those of a batch.

    Attributes:
        ids: ids of requests; ``None`` means any.
        batch: only requests of this batch; ``None`` means of any batch or none.
        tenant: only requests of this tenant; ``None`` means any.
    """

    ids: frozenset[str] | None = None
    batch: str | None = None
    tenant: str | None = None

    def includes(self, event: PromptRequest | ImageResult) -> bool:
        """Whether a request is wanted, or the request of a result."""
        return (
            (self.ids is None or event.request_id in self.ids)
            and self.batch in (None, event.batch_id)
            and self.tenant in (None, event.tenant)
        )

    def cheap_test(self) -> Callable[[bytes], bool]:
        """Return a test of whether an undecoded event may be wanted; decoding a long topic takes long."""
        if self.batch is not None:
            words = [self.batch.encode()]
        elif self.ids is not None and len(self.ids) <= _FEW:
            words = [each.encode() for each in self.ids]
        else:
            return lambda _: True
        return lambda value: any(word in value for word in words)


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
    settings: Settings, backlog: Backlog, codec: Codec, wanted: Wanted
) -> Iterator[Unresolved]:
    """Yield the unresolved records of requests.

    Raises:
        BrokerUnavailableError, TopicMissingError: the requests topic cannot be read.
        RegistryUnavailableError: the registry does not answer, so that it is unknown what a record asks for.
    """
    partitions = {p.number: p for p in backlog.partitions}
    may_include = wanted.cheap_test()
    for record, is_uncommitted in _unresolved(settings, backlog):
        partition = partitions[record.partition]
        held, offset = partition.checkpoint, record.offset
        if record.value is None or held.is_resolved(offset) or not may_include(record.value):
            continue
        try:
            request = codec.decode_request(record.value)
        except (WireError, SchemaUnavailableError):
            continue
        if wanted.includes(request):
            yield Unresolved(
                request.request_id,
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
    settings: Settings, partitions: Iterable[int], codec: Codec, wanted: Wanted
) -> Iterator[ImageResult]:
    """Yield the results of requests in these partitions, oldest first in each.

    Raises:
        BrokerUnavailableError, TopicMissingError: the results topic cannot be read.
        RegistryUnavailableError: the registry does not answer.
    """
    records = _read(settings, settings.topics.results, dict.fromkeys(partitions, OFFSET_BEGINNING))
    return results_in(records, codec, wanted)


def results_in(records: Iterable[Record], codec: Codec, wanted: Wanted) -> Iterator[ImageResult]:
    """Yield the wanted results among records. Raises RegistryUnavailableError as :func:`find_results`."""
    may_include = wanted.cheap_test()
    for record in records:
        if record.value is None or not may_include(record.value):
            continue
        try:
            result = codec.decode_result(record.value)
        except (WireError, SchemaUnavailableError):
            continue
        if wanted.includes(result):
            yield result


def _read(
    settings: Settings, topic: str, starts: dict[int, int], *, uncommitted: bool = False
) -> Iterator[Record]:
    if not starts:
        return
    with TopicReader(settings.kafka, topic, uncommitted=uncommitted) as reader:
        reader.start(starts)
        yield from reader.read_to_end()
