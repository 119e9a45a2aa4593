"""The backlog of unresolved requests, computed from the group's checkpoints.

The consumer lag would overstate it: requests finish in any order, and those that are already resolved above
the committed offset are recorded in the commit's metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from confluent_kafka import OFFSET_INVALID, KafkaException, TopicPartition

from zimage_stream.checkpoint import GONE_BACK, Checkpoint
from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, ConnectionStatus, create_admin, metadata_of
from zimage_stream.kafka.members import slot_of
from zimage_stream.kafka.offsets import LogBounds, group_offsets
from zimage_stream.kafka.oldest import first_records, first_written
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings


@dataclass(frozen=True, slots=True)
class OpenTransaction:
    """A producer's open transaction: workers cannot read beyond its first record until it ends.

    Attributes:
        offset: offset of that record.
        waiting: number of offsets from there on, including its own records and other transactions' markers.
        since: when that record was written.
        source: the sender, according to the record.
    """

    offset: int
    waiting: int
    since: datetime
    source: str | None


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of the requests topic.

    Attributes:
        checkpoint: the group's checkpoint; if it never committed, one at the start of the log.
        log: bounds of the log; ``None`` while the partition has no leader.
        lost: number of offsets that were deleted before they were resolved.
        past_end: how far the group's offset lies beyond the log's end, as after the topic was recreated.
        damaged: why the commit's metadata is unusable; ``None`` if it is usable.
        worker: the worker that owns the partition, by its name in the group; ``None`` if there is none.
        oldest_at: when the first unresolved request was written; ``None`` if there is none.
    """

    number: int
    checkpoint: Checkpoint
    log: LogBounds | None
    lost: int = 0
    past_end: int = 0
    damaged: str | None = None
    worker: str | None = None
    oldest_at: datetime | None = None
    transaction: OpenTransaction | None = None

    @property
    def unresolved(self) -> int:
        """Number of readable requests without a terminal event.

        Offsets without a record (transaction markers) count until a worker has passed them.
        """
        if self.oldest_at is None or self.log is None:
            return 0
        held = self.checkpoint
        return max(0, self.log.end - held.base - held.resolved.bit_count())

    @property
    def waiting(self) -> int:
        """Number of records behind an open transaction."""
        return self.transaction.waiting if self.transaction else 0

    @property
    def is_remarkable(self) -> bool:
        """Whether there is anything to report about the partition."""
        return bool(
            self.unresolved or self.waiting or self.lost or self.past_end or self.damaged or not self.log
        )

    @property
    def started(self) -> int:
        """Number of requests that are being generated, or were when their worker died."""
        return sum(mark.open for mark in self.checkpoint.marks.values())

    @property
    def suspects(self) -> int:
        """Number of requests that were running when a worker died; each is run alone."""
        return sum(mark.suspect for mark in self.checkpoint.marks.values())


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A worker as a member of its group."""

    name: str
    host: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """A group's backlog of the requests topic. ``state`` is Kafka's state of the group."""

    state: str
    members: tuple[GroupMember, ...]
    partitions: tuple[Partition, ...]

    @property
    def unresolved(self) -> int:
        """Number of readable requests without a terminal event."""
        return sum(partition.unresolved for partition in self.partitions)

    @property
    def waiting(self) -> int:
        """Number of records behind open transactions."""
        return sum(partition.waiting for partition in self.partitions)

    @property
    def leaderless(self) -> list[int]:
        """Partitions without a leader, whose backlog is unknown."""
        return [partition.number for partition in self.partitions if partition.log is None]

    @property
    def oldest_at(self) -> datetime | None:
        """When the oldest unresolved request was written; ``None`` if there is none."""
        return min((p.oldest_at for p in self.partitions if p.oldest_at is not None), default=None)


def read_backlog(settings: Settings) -> Backlog:
    """Read the backlog from the brokers, without joining the group.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: the requests topic does not exist.
    """
    connection = ConnectionStatus(settings.kafka)
    state, members, holders = _group(settings, connection)
    kafka, topic, group = settings.kafka, settings.topics.requests, settings.worker.group_id
    found = [partition_of(each.committed, each.log) for each in group_offsets(kafka, topic, group)]
    bases = {each.number: each.checkpoint.base for each in found}
    ends = {each.number: each.log.end for each in found if each.log}
    oldest = first_written(kafka, topic, {n: bases[n] for n, end in ends.items() if end > bases[n]})
    transactions = _open_transactions(settings, found)
    partitions = tuple(
        replace(
            each,
            worker=holders.get(each.number),
            oldest_at=oldest.get(each.number),
            transaction=transactions.get(each.number),
        )
        for each in found
    )
    return Backlog(state, members, partitions)


def _open_transactions(settings: Settings, partitions: Sequence[Partition]) -> dict[int, OpenTransaction]:
    held_back = {each.number: each.log for each in partitions if each.log and each.log.high > each.log.end}
    starts = {number: log.end for number, log in held_back.items()}
    first = first_records(settings.kafka, settings.topics.requests, starts, uncommitted=True)
    return {
        number: OpenTransaction(
            held_back[number].end,
            held_back[number].high - held_back[number].end,
            record.timestamp,
            _source_of(record),
        )
        for number, record in first.items()
    }


def _source_of(record: Record) -> str | None:
    """Return the CloudEvents source of a record, or ``None`` if it has none."""
    sources = [value for name, value in record.headers if name == "ce_source" and value]
    return sources[-1].decode(errors="replace") if sources else None


def _group(
    settings: Settings, connection: ConnectionStatus
) -> tuple[str, tuple[GroupMember, ...], dict[int, str]]:
    admin = create_admin(settings.kafka, connection)
    metadata_of(admin, connection)
    group = settings.worker.group_id
    try:
        description = admin.describe_consumer_groups([group], request_timeout=CONTACT_TIMEOUT_S)[
            group
        ].result()
    except KafkaException as error:
        raise connection.explain(error.args[0]) from error
    members, holders = [], {}
    for member in description.members:
        held = [
            each.partition
            for each in (member.assignment.topic_partitions if member.assignment else ())
            if each.topic == settings.topics.requests
        ]
        name = slot_of(member.client_id)
        members.append(GroupMember(name, member.host.removeprefix("/"), len(held)))
        holders.update(dict.fromkeys(held, name))
    state = description.state.name.lower().replace("_", " ")
    return state, tuple(sorted(members, key=lambda member: member.name)), holders


def resolved_below(checkpoint: Checkpoint, offset: int) -> int:
    """Count the resolved offsets from the base up to, but not including, ``offset``."""
    # However large the offset is, the mask need not be wider than the bitmap.
    width = min(max(0, offset - checkpoint.base), checkpoint.resolved.bit_length())
    return (checkpoint.resolved & ((1 << width) - 1)).bit_count()


def partition_of(committed: TopicPartition, log: LogBounds | None) -> Partition:
    """Describe a partition, from the group's commit and the log's bounds. Pure."""
    number, base = committed.partition, committed.offset
    if base == OFFSET_INVALID:
        return Partition(number, Checkpoint(log.low if log else 0), log)
    checkpoint, damaged = Checkpoint(base), None
    if committed.metadata and committed.metadata.startswith(GONE_BACK):
        damaged = f"workers have stopped the partition: {committed.metadata.removeprefix(GONE_BACK)}"
    elif committed.metadata:
        try:
            checkpoint = Checkpoint.decode(committed.metadata, base)
        except ValueError as error:
            damaged = str(error)
    deleted = max(0, log.low - base) if log else 0
    lost = deleted - resolved_below(checkpoint, base + deleted)
    past_end = max(0, base - log.high) if log else 0
    return Partition(number, checkpoint, log, lost, past_end, damaged)
