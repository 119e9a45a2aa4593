"""What of the requests is not resolved yet, told from the group's own checkpoints.

A consumer's lag would say too much: requests finish in any order, and those above the committed
offset that are done are in the commit's metadata.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from confluent_kafka import OFFSET_INVALID, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.checkpoint import Checkpoint
from zimage_consumers.image_worker.roster import slot_of
from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, Trouble, common_config, metadata_of
from zimage_stream.kafka.oldest import first_written, read_committed_offsets
from zimage_stream.settings import Settings


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
    topic = settings.topics.requests
    committed = read_committed_offsets(settings.kafka, topic, settings.worker.group_id)
    found = [partition_of(*each) for each in committed]
    waiting = {each.number: each.checkpoint.base for each in found if each.end > each.checkpoint.base}
    oldest = first_written(settings.kafka, topic, waiting)
    partitions = tuple(
        replace(each, worker=holders.get(each.number), oldest_at=oldest.get(each.number)) for each in found
    )
    return Backlog(state, members, partitions)


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
        name = slot_of(member.client_id)
        members.append(Member(name, member.host.removeprefix("/"), len(held)))
        holders.update(dict.fromkeys(held, name))
    state = description.state.name.lower().replace("_", " ")
    return state, tuple(sorted(members, key=lambda member: member.name)), holders


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
