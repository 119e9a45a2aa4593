"""What of the requests is not resolved yet, told from the group's own checkpoints.

A consumer's lag would say too much: requests finish in any order, and those above the committed
offset that are done are in the commit's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.checkpoint import Checkpoint
from zimage_stream.kafka.clients import (
    CONTACT_TIMEOUT_S,
    Trouble,
    common_config,
    metadata_of,
    reader_config,
)
from zimage_stream.kafka.reader import TopicMissingError, TopicReader
from zimage_stream.kafka.topics import topic_exists
from zimage_stream.settings import Settings

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of the requests topic.

    Attributes:
        checkpoint: the group's; of the log's start where it never committed.
        end: offset of the next record.
        lost: offsets that were deleted before they were resolved.
        damaged: why the commit's metadata is of no use, if it is not.
        worker: who holds it, as the group names its members; ``None`` where nobody does.
        oldest_at: when the first unresolved request was written; ``None`` where there is none.
    """

    number: int
    checkpoint: Checkpoint
    end: int
    lost: int = 0
    damaged: str | None = None
    worker: str | None = None
    oldest_at: datetime | None = None

    @property
    def unresolved(self) -> int:
        """Requests without a terminal event. Offsets between them that hold no record (markers of
        transactions) count until a worker has passed them."""
        if self.oldest_at is None:
            return 0
        held = self.checkpoint
        return max(0, self.end - held.base - held.resolved.bit_count())

    @property
    def started(self) -> int:
        """Those that are being generated, or were when their worker died."""
        return sum(mark.open for mark in self.checkpoint.marks.values())

    @property
    def suspects(self) -> int:
        """Those that a worker died with; each runs alone."""
        return sum(mark.suspect for mark in self.checkpoint.marks.values())


@dataclass(frozen=True, slots=True)
class Member:
    """A worker, as the group knows it."""

    name: str
    host: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """The requests topic as a group stands to it. ``state`` is Kafka's word for the group's."""

    state: str
    members: tuple[Member, ...]
    partitions: tuple[Partition, ...]

    @property
    def unresolved(self) -> int:
        """Requests without a terminal event."""
        return sum(partition.unresolved for partition in self.partitions)

    @property
    def oldest_at(self) -> datetime | None:
        """When the oldest of them was written."""
        return min((p.oldest_at for p in self.partitions if p.oldest_at is not None), default=None)


def read_backlog(settings: Settings) -> Backlog:
    """Ask the brokers, as somebody who is no member of the group.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: there is no requests topic.
    """
    trouble = Trouble(settings.kafka)
    state, members, holders = _group(settings, trouble)
    found = _partitions(settings, trouble)
    oldest = _oldest(settings, _unfinished(found))
    partitions = tuple(
        replace(each, worker=holders.get(each.number), oldest_at=oldest.get(each.number)) for each in found
    )
    return Backlog(state, members, partitions)


def oldest_unresolved(settings: Settings) -> timedelta | None:
    """Age of the oldest request without a terminal event; ``None`` where there is none, or no topic.

    Raises:
        BrokerUnavailableError: no broker answers.
    """
    if not topic_exists(settings.kafka, settings.topics.requests):
        return None
    found = _partitions(settings, Trouble(settings.kafka))
    oldest = _oldest(settings, _unfinished(found))
    return datetime.now(UTC) - min(oldest.values()) if oldest else None


def _unfinished(partitions: list[Partition]) -> dict[int, int]:
    return {p.number: p.checkpoint.base for p in partitions if p.end > p.checkpoint.base}


def _group(settings: Settings, trouble: Trouble) -> tuple[str, tuple[Member, ...], dict[int, str]]:
    admin = AdminClient(common_config(settings.kafka) | settings.kafka.extra | {"error_cb": trouble})
    metadata_of(admin, trouble)
    group = settings.worker.group_id
    try:
        description = admin.describe_consumer_groups([group], request_timeout=CONTACT_TIMEOUT_S)[
            group
        ].result()
    except KafkaException as error:
        raise trouble.explain(error.args[0]) from error
    members, holders = [], {}
    for member in description.members:
        held = [
            each.partition
            for each in (member.assignment.topic_partitions if member.assignment else ())
            if each.topic == settings.topics.requests
        ]
        members.append(Member(member.client_id, member.host.removeprefix("/"), len(held)))
        holders.update(dict.fromkeys(held, member.client_id))
    state = description.state.name.lower().replace("_", " ")
    return state, tuple(sorted(members, key=lambda member: member.name)), holders


def _partitions(settings: Settings, trouble: Trouble) -> list[Partition]:
    topic = settings.topics.requests
    config = {**reader_config(settings.kafka), "group.id": settings.worker.group_id, "error_cb": trouble}
    consumer = Consumer(config)
    try:
        found = metadata_of(consumer, trouble, topic).topics[topic]
        if found.error is not None:
            raise TopicMissingError(topic, found.error.str())
        asked = [TopicPartition(topic, number) for number in sorted(found.partitions)]
        committed = consumer.committed(asked, timeout=CONTACT_TIMEOUT_S)
        marks = [consumer.get_watermark_offsets(each, timeout=CONTACT_TIMEOUT_S) for each in asked]
    except KafkaException as error:
        raise trouble.explain(error.args[0]) from error
    finally:
        consumer.close()
    return [partition_of(each, low, high) for each, (low, high) in zip(committed, marks, strict=True)]


def partition_of(committed: TopicPartition, low: int, end: int) -> Partition:
    """One partition, from the group's commit and the log's bounds. Pure."""
    number, base = committed.partition, committed.offset
    if base == OFFSET_INVALID:
        return Partition(number, Checkpoint(low), end)
    checkpoint, damaged = Checkpoint(base), None
    if committed.metadata:
        try:
            checkpoint = Checkpoint.decode(committed.metadata, base)
        except ValueError as error:
            damaged = str(error)
    deleted = max(0, low - base)
    lost = deleted - (checkpoint.resolved & ((1 << deleted) - 1)).bit_count()
    return Partition(number, checkpoint, end, lost, damaged)


def _oldest(settings: Settings, bases: dict[int, int]) -> dict[int, datetime]:
    """When the first record from each base on was written: the base is never resolved. A partition that
    has none, but markers of transactions at most, is left out."""
    found: dict[int, datetime] = {}
    if not bases:
        return found
    with TopicReader(settings.kafka, settings.topics.requests) as reader:
        reader.start(bases)
        while reader.unfinished - found.keys():
            message = reader.poll(_POLL_S)
            if message is None:
                if reader.trouble is not None:
                    raise reader.trouble
                continue
            number = message.partition()
            assert number is not None
            found.setdefault(number, datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC))
    return found
