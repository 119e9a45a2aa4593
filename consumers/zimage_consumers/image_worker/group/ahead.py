"""Fetches single records of the requests topic ahead of their turn: those of requests that were cancelled.

A request behind a backlog of 100,000 would otherwise end only when its turn comes. Each partition's records
are fetched in the order of their offsets, by a consumer of their own, so that the session's fetches neither
wait nor skip.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.kafka.clients import reader_config
from zimage_stream.kafka.record import Record, record_of
from zimage_stream.settings import KafkaSettings

RECORDS_PER_TURN = 256
NEAR = 256
"""Distance to the next record, in offsets, up to which reading on is quicker than seeking."""


@dataclass(eq=False, slots=True)
class _Partition:
    """The records wanted of one partition.

    Attributes:
        wanted: their offsets, as a heap.
        position: offset that the consumer delivers next; ``None`` where it is not assigned.
        full: the checkpoint that had no room for the next of them.
    """

    assignment: Assignment
    wanted: list[int] = field(default_factory=list)
    position: int | None = None
    full: Checkpoint | None = None


class RecordsAhead:
    """Fetches records ahead of their turn. Kafka thread only; no call waits."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._partitions: dict[int, _Partition] = {}
        self._consumer: Consumer | None = None

    def want(self, assignment: Assignment, offset: int) -> None:
        """Fetch this record, unless its turn comes before."""
        held = self._partitions.setdefault(assignment.number, _Partition(assignment))
        heapq.heappush(held.wanted, offset)

    def leave(self, numbers: Collection[int]) -> None:
        """Stop fetching from these partitions."""
        for number in self._partitions.keys() & set(numbers):
            self._stop(self._partitions.pop(number))

    def close(self) -> None:
        """Release the connections."""
        self._partitions.clear()
        if self._consumer is not None:
            self._consumer.close()

    def fetch(self) -> list[Record]:
        """Return wanted records that have arrived, and ask for the next ones."""
        for each in self._partitions.values():
            self._seek(each)
        if self._consumer is None or all(each.position is None for each in self._partitions.values()):
            return []
        found: list[Record] = []
        for message in self._consumer.consume(RECORDS_PER_TURN, 0):
            partition, offset = message.partition(), message.offset()
            held = None if partition is None else self._partitions.get(partition)
            if held is None or held.position is None or offset is None or message.error() is not None:
                continue
            held.position = offset + 1
            if not held.wanted or offset < held.wanted[0]:
                continue
            if not self._has_room(held):
                self._stop(held)
                continue
            # Where offset is larger, the wanted record does not exist; its turn will show that.
            if heapq.heappop(held.wanted) == offset and held.assignment.ledger.take_ahead(offset):
                found.append(record_of(message))
        return found

    def _seek(self, held: _Partition) -> None:
        """Let the consumer deliver the next wanted record of a partition, or nothing of it."""
        ledger = held.assignment.ledger
        while held.wanted and (held.wanted[0] < ledger.next or ledger.checkpoint.is_resolved(held.wanted[0])):
            heapq.heappop(held.wanted)
        if not held.wanted or not self._has_room(held):
            self._stop(held)
            return
        due = held.wanted[0]
        if held.position is not None and held.position <= due <= held.position + NEAR:
            return
        self._stop(held)
        held.position = due
        self._connected().incremental_assign([TopicPartition(self._topic, held.assignment.number, due)])

    def _has_room(self, held: _Partition) -> bool:
        """Whether the checkpoint has room for the next wanted record."""
        ledger = held.assignment.ledger
        if held.full is ledger.checkpoint:
            return False
        room = ledger.room_ahead(held.wanted[0])
        held.full = None if room else ledger.checkpoint
        return room

    def _stop(self, held: _Partition) -> None:
        if held.position is not None:
            held.position = None
            place = TopicPartition(self._topic, held.assignment.number)
            self._connected().incremental_unassign([place])

    def _connected(self) -> Consumer:
        if self._consumer is None:
            self._consumer = Consumer(
                {
                    **reader_config(self._settings),
                    "queued.min.messages": 1,
                    "queued.max.messages.kbytes": 256,
                    # By default a client whose queue is full looks again a second later.
                    "fetch.queue.backoff.ms": 5,
                    "fetch.message.max.bytes": 64 << 10,
                    "log_level": 0,
                }
            )
        return self._consumer
