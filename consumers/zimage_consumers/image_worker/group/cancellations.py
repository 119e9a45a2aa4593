"""Reads which requests of the partitions held were cancelled.

A cancellation lies in the partition of the same number as its request, so each partition's are read from the
start of what is kept, and those of requests that are already resolved are skipped. What is kept is bounded by
the backlog: an offset that the log does not have yet belongs to no request, because a record exists before
its cancellation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from zimage_consumers.image_worker.group.ahead import RecordsAhead
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_stream.errors import RegistryUnavailableError, WireError
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import reader_config
from zimage_stream.settings import Settings
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

RECORDS_PER_TURN = 1_000
MAX_UNSETTLED = 1_000
"""Cancellations of one partition that cannot be judged yet, above which no more are read."""
WAIT_S, LONGEST_WAIT_S = 5.0, 60.0
"""How long a partition waits for its cancellations, in seconds: while none arrive, and altogether."""
ANSWER_TIMEOUT_S = 5.0
ASK_AGAIN_S, LOOK_AGAIN_S = 0.5, 30.0
"""Intervals, in seconds, of questions that failed, and of those for a topic that does not exist."""
MIN_TIDY = 1_000
"""Number of cancelled offsets of a partition up to which it is not worth looking for those that are gaps."""
_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(eq=False, slots=True)
class _Partition:
    """The cancellations of one partition.

    Attributes:
        began: monotonic time at which it was taken over.
        reading: the consumer is assigned to them.
        ended: all that were there have arrived, or there are none.
        late: the partition has started without them.
        end: an end that the log of requests is known to have.
        beyond: cancelled offsets, with their reasons, that are not known to be in the log.
        asked: those of them that were there when the question for its end was asked, and the question.
        unread: cancellations whose schema is not available yet.
        skipped: number of those that cannot be read.
        tidy_at: number of cancelled offsets at which those that turned out to be gaps are forgotten.
    """

    assignment: Assignment
    began: float
    reading: bool = False
    ended: bool = False
    late: bool = False
    end: int = 0
    beyond: dict[int, str | None] = field(default_factory=dict)
    asked: tuple[dict[int, str | None], Future[Any]] | None = None
    ask_at: float = 0.0
    unread: list[bytes | None] = field(default_factory=list)
    read_again_at: float = 0.0
    skipped: int = 0
    tidy_at: int = MIN_TIDY

    @property
    def settled(self) -> bool:
        """Whether all that have arrived are judged."""
        return not (self.beyond or self.asked or self.unread)

    @property
    def crowded(self) -> bool:
        """Whether no more should arrive before some are judged."""
        asked = len(self.asked[0]) if self.asked else 0
        return len(self.beyond) + asked + len(self.unread) >= MAX_UNSETTLED


class Cancellations:
    """The cancellations of the partitions held. Kafka thread only; no call waits."""

    def __init__(self, settings: Settings, admin: AdminClient, codec: Codec, health: Health) -> None:
        self._requests = settings.topics.requests
        self._topic = settings.topics.cancellations
        self._admin = admin
        self._codec = codec
        self._health = health
        self.ahead = RecordsAhead(settings.kafka, settings.topics.requests)
        self._held: dict[int, _Partition] = {}
        self._unsettled: list[_Partition] = []
        """Those that wait for their cancellations, or have some that are not judged."""
        self._partitions: int | None = None
        """Number of partitions of the topic; 0 if it does not exist, ``None`` while it is unknown."""
        self._unassigned = False
        self._described: Future[Any] | None = None
        self._describe_at = 0.0
        self._progress_at = 0.0
        self._problem = ""
        self._consumer = Consumer(
            {
                **reader_config(settings.kafka),
                "enable.partition.eof": True,
                "queued.min.messages": 1_000,
                "queued.max.messages.kbytes": 64,
                # By default a client whose queue is full looks again a second later.
                "fetch.queue.backoff.ms": 5,
                "fetch.message.max.bytes": 16 << 10,
                "error_cb": self._note_error,
            }
        )

    def begin(self, assignments: Iterable[Assignment]) -> None:
        """Read the cancellations of these partitions, from the start of what is kept."""
        at = time.monotonic()
        begun = {assignment.number: _Partition(assignment, at) for assignment in assignments}
        self._held |= begun
        self._unsettled += begun.values()
        self._unassigned = True
        if self._partitions and max(begun) >= self._partitions:
            # Both topics may have been given more since it was asked.
            self._partitions, self._describe_at = None, at

    def leave(self, numbers: Collection[int]) -> None:
        """Stop reading those of these partitions."""
        left = [self._held.pop(number) for number in self._held.keys() & set(numbers)]
        if read := [self._place(each.assignment.number) for each in left if each.reading]:
            self._consumer.incremental_unassign(read)
        self.ahead.leave(numbers)
        self._unsettled = [each for each in self._unsettled if each not in left]
        for each in left:
            self._health.release(_key(each.assignment.number))

    @property
    def behind(self) -> bool:
        """Whether a partition waits for its cancellations, or some of them are not judged."""
        return bool(self._unsettled)

    def close(self) -> None:
        """Release the connections."""
        self._held.clear()
        self._consumer.close()
        self.ahead.close()

    def read(self) -> list[tuple[Assignment, int]]:
        """Read on, and return the requests that are newly known to be cancelled. The offset of each is then
        in ``cancelled`` of its assignment."""
        if not self._held:
            return []
        if self._unassigned:
            self._describe()
            self._start()
        found: list[tuple[Assignment, int]] = []
        crowded = any(held.crowded for held in self._unsettled)
        messages = () if crowded else self._consumer.consume(RECORDS_PER_TURN, 0)
        if messages:
            # Of whichever partition: one may have to wait for the many of another.
            self._progress_at = time.monotonic()
        for message in messages:
            partition, problem = message.partition(), message.error()
            held = None if partition is None else self._held.get(partition)
            if held is None:
                continue
            if problem is None:
                found += self._read_one(held, message.value())
            elif problem.code() == KafkaError._PARTITION_EOF:
                held.ended = True
            else:
                self._note_error(problem)
        self._unsettled = [
            held
            for held in self._held.values()
            if held.late or not (held.assignment.informed and held.settled)
        ]
        for held in self._unsettled:
            found += self._read_again(held)
            found += self._settle(held)
            self._check_wait(held)
        return found

    # -- the topic

    def _describe(self) -> None:
        """Ask how many partitions the topic has, while it has fewer than are needed."""
        at = time.monotonic()
        if self._described is None:
            if at >= self._describe_at:
                topics = TopicCollection([self._topic])
                answers = self._admin.describe_topics(topics, request_timeout=ANSWER_TIMEOUT_S)
                self._described = answers[self._topic]
            return
        if not self._described.done():
            return
        answer, self._described = self._described, None
        self._describe_at = at + LOOK_AGAIN_S
        try:
            self._partitions = len(answer.result().partitions)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                self._describe_at = at + ASK_AGAIN_S
                self._note_error(error.args[0])
                return
            if self._partitions is None:
                log.info("topic %s does not exist, so no request can be cancelled", self._topic)
            self._partitions = 0

    def _start(self) -> None:
        if self._partitions is None:
            return
        starts = []
        for number, held in self._held.items():
            if not held.reading and number < self._partitions:
                held.reading = True
                starts.append(self._place(number))
            # Where the topic has no such partition, nothing can be cancelled.
            held.ended |= not held.reading
        if starts:
            self._consumer.incremental_assign(starts)
        self._unassigned = not all(held.reading for held in self._held.values())

    # -- one partition

    def _read_one(self, held: _Partition, value: bytes | None) -> list[tuple[Assignment, int]]:
        try:
            cancellation = self._codec.decode_cancellation(value)
        except RegistryUnavailableError as error:
            self._problem = str(error)
            held.unread.append(value)
            return []
        except WireError as error:
            held.skipped += 1
            if held.skipped == 1:
                log.warning("a cancellation in partition %d is skipped: %s", held.assignment.number, error)
            return []
        source, ledger = cancellation.source, held.assignment.ledger
        here = (source.topic, source.partition) == (self._requests, held.assignment.number)
        if not here or source.offset < 0 or ledger.checkpoint.is_resolved(source.offset):
            return []
        if source.offset >= max(held.end, ledger.next):
            held.beyond[source.offset] = cancellation.reason
            return []
        return self._cancel(held, source.offset, cancellation.reason)

    def _read_again(self, held: _Partition) -> list[tuple[Assignment, int]]:
        """Read those whose schema may be available by now."""
        at = time.monotonic()
        if not held.unread or at < held.read_again_at:
            return []
        held.read_again_at = at + ASK_AGAIN_S
        unread, held.unread = held.unread, []
        return [each for value in unread for each in self._read_one(held, value)]

    def _cancel(self, held: _Partition, offset: int, reason: str | None) -> list[tuple[Assignment, int]]:
        if offset in held.assignment.cancelled:
            return []
        cancelled, checkpoint = held.assignment.cancelled, held.assignment.ledger.checkpoint
        cancelled[offset] = reason
        if len(cancelled) >= held.tidy_at:
            for gap in [each for each in cancelled if checkpoint.is_resolved(each)]:
                del cancelled[gap]
            held.tidy_at = max(MIN_TIDY, 2 * len(cancelled))
        if offset >= held.assignment.ledger.next:
            self.ahead.want(held.assignment, offset)
        return [(held.assignment, offset)]

    def _settle(self, held: _Partition) -> list[tuple[Assignment, int]]:
        """Learn whether the offsets beyond the known end are in the log by now."""
        at = time.monotonic()
        if held.asked is None:
            if held.beyond and at >= held.ask_at:
                place = TopicPartition(self._requests, held.assignment.number)
                answers = self._admin.list_offsets({place: _LATEST}, request_timeout=ANSWER_TIMEOUT_S)
                # What arrives from now on may be newer than the answer.
                held.asked, held.beyond = (held.beyond, answers[place]), {}
            return []
        asked, answer = held.asked
        if not answer.done():
            return []
        held.asked = None
        try:
            held.end = max(held.end, answer.result().offset)
        except KafkaException as error:
            held.beyond, held.ask_at = asked | held.beyond, at + ASK_AGAIN_S
            self._note_error(error.args[0])
            return []
        found: list[tuple[Assignment, int]] = []
        for offset, reason in asked.items():
            if offset < held.end and not held.assignment.ledger.checkpoint.is_resolved(offset):
                found += self._cancel(held, offset, reason)
        return found

    def _check_wait(self, held: _Partition) -> None:
        """Let a partition start once its cancellations are known, or if they cannot be read."""
        assignment, at = held.assignment, time.monotonic()
        if held.ended and held.settled:
            if not assignment.informed or held.late:
                self._inform(held)
            return
        idle_since = max(held.began, self._progress_at)
        late = at - idle_since >= WAIT_S or at - held.began >= LONGEST_WAIT_S
        if assignment.informed or not late:
            return
        assignment.informed = held.late = True
        number = assignment.number
        reason = f"cancellations of partition {number} cannot be read: {self._problem or 'no answer'}"
        log.warning(reason)
        self._health.hold(_key(number), reason, number)

    def _inform(self, held: _Partition) -> None:
        held.assignment.informed, held.late = True, False
        self._health.release(_key(held.assignment.number))

    def _note_error(self, problem: KafkaError) -> None:
        self._problem = problem.str()
        log.debug("cancellations: %s", self._problem)

    def _place(self, number: int) -> TopicPartition:
        return TopicPartition(self._topic, number, OFFSET_BEGINNING)


def _key(number: int) -> str:
    return f"cancellations-{number}"
