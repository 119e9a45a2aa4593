"""The partitions that a session holds: how each starts, what is known of its log, and why it may stop.

Which partitions the group assigns, and what is committed for them, is the session's concern
(:mod:`~zimage_consumers.image_worker.group.session`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.group.cancellations import Cancellations
from zimage_consumers.image_worker.group.stalls import Stalls
from zimage_consumers.image_worker.group.takeover import ArrivingPartitions
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import GONE_BACK, Checkpoint
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

SETTLE_S = 1.0
"""Delay before a base moved only by gaps in the log is committed, in seconds; more records may follow."""
MAX_REASON_CHARACTERS = 500
_LOG_GONE = frozenset((KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION))
"""Errors for a next offset that the log no longer has: deleted before it was served, or the log went back."""
_UNREADABLE = frozenset((KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION))
"""Errors for a batch that the client cannot read; for most such batches it reports nothing."""


class Partitions:
    """The partitions of one session, from their arrival until they leave. Kafka thread only.

    Args:
        consumer: the session's consumer; partitions are assigned, paused and resumed through it.
        arriving: reads the checkpoints of partitions that the group has assigned.
        cancellations: reads which requests of the partitions held were cancelled.
        window: told which partitions come and go.
        admin: used to ask the leaders of stalled partitions.
    """

    def __init__(
        self,
        consumer: Consumer,
        topic: str,
        arriving: ArrivingPartitions,
        cancellations: Cancellations,
        window: Window,
        admin: AdminClient,
        health: Health,
    ) -> None:
        self._consumer = consumer
        self._topic = topic
        self._window = window
        self._health = health
        self._paused: set[int] = set()
        self.arriving = arriving
        self._cancellations = cancellations
        self._stalls = Stalls(admin, topic, health)

    @property
    def held(self) -> dict[int, Assignment]:
        """The assignments held now, by partition number."""
        return self._window.assignments

    @property
    def stalled(self) -> int:
        """Number of partitions that deliver nothing although their log has more."""
        return self._stalls.count

    # -- arrival and departure

    def start_arrived(self) -> None:
        """Start the partitions whose checkpoints have been read.

        Raises:
            ClientsLostError: the brokers refuse to return checkpoints.
        """
        ready = self.arriving.ready()
        if not ready:
            return
        for number, start in ready.items():
            assignment = Assignment(number, Ledger(start.checkpoint), leader_epoch=start.leader_epoch)
            self._window.begin(assignment)
            if start.gone_back is not None:
                self._stop_gone_back(assignment, start.gone_back)
        starts = [
            TopicPartition(self._topic, number, start.checkpoint.base, "", start.leader_epoch)
            for number, start in ready.items()
        ]
        self._consumer.incremental_assign(starts)
        # Nothing is fetched before the cancellations are known. The client may also remember a pause from
        # before the partition left; from here on it and we agree.
        self._consumer.pause(starts)
        self._paused |= ready.keys()
        self._cancellations.begin([self.held[number] for number in ready])
        log.info("took over partitions %s", sorted(ready))

    def drop(self, numbers: Collection[int]) -> set[int]:
        """Stop holding these partitions, and awaiting them. Returns those that were held."""
        left = self._window.leave(numbers)
        self._paused -= left
        self._health.release_partitions(left)
        self._stalls.drop(left)
        self._cancellations.leave(left)
        self.arriving.drop(numbers)
        return left

    def unassign(self, numbers: Collection[int]) -> None:
        """Tell the consumer to stop fetching these partitions."""
        self._consumer.incremental_unassign([TopicPartition(self._topic, number) for number in numbers])

    def pause_only(self, to_pause: set[int]) -> None:
        """Pause fetching from exactly these partitions and resume all others."""
        if to_pause == self._paused:
            return
        pause, resume = to_pause - self._paused, (self._paused - to_pause) & self.held.keys()
        if pause:
            self._consumer.pause([TopicPartition(self._topic, number) for number in pause])
        if resume:
            self._consumer.resume([TopicPartition(self._topic, number) for number in resume])
        self._paused = to_pause

    # -- checkpoints

    def offsets(self, checkpoints: Mapping[int, Checkpoint]) -> list[TopicPartition]:
        """What to commit for these checkpoints: base, metadata and leader epoch of each partition."""
        offsets = []
        for number, checkpoint in checkpoints.items():
            gone_back = self.held[number].gone_back
            metadata = checkpoint.encode() if gone_back is None else GONE_BACK + gone_back
            epoch = self.held[number].leader_epoch
            offsets.append(TopicPartition(self._topic, number, checkpoint.base, metadata, epoch))
        return offsets

    def adopt(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        """Record that these checkpoints are committed."""
        for number, checkpoint in checkpoints.items():
            self.held[number].ledger.adopt(checkpoint)
            self.held[number].settle_at = math.inf

    # -- what the log shows

    def note_epoch(self, message: Message) -> None:
        """Record the leader epoch of a delivered message."""
        assignment, epoch = self._assignment_of(message.partition()), message.leader_epoch()
        if assignment is not None and epoch is not None:
            assignment.leader_epoch = epoch

    def reach_end(self, message: Message) -> None:
        """Record that everything in the log up to its end has been delivered.

        Between the last record and the end there are only transaction markers and aborted records. Left
        above the base they would look like lost requests once retention deletes them.
        """
        assignment, end = self._assignment_of(message.partition()), message.offset()
        if assignment is None or end is None:
            return
        before = assignment.ledger.checkpoint.base
        assignment.ledger.reach(end)
        if assignment.ledger.checkpoint.base > before:
            assignment.settle_at = min(assignment.settle_at, time.monotonic() + SETTLE_S)

    def check_stalls(self) -> None:
        """Look for stalled partitions. Call after a poll that returned nothing: after one that returned a
        record, any partition might still have more to deliver."""
        if not self._stalls.due():
            return
        next_offsets = {number: assignment.ledger.next for number, assignment in self.held.items()}
        fetched = next_offsets.keys() - self._paused
        behind = [number for number in fetched if self._log_end(number) > next_offsets[number]]
        self._stalls.watch(next_offsets, behind)

    def unresolved(self) -> dict[int, int]:
        """Number of requests without a terminal event in each partition held, as far as its end is known."""
        counts = {}
        for number, assignment in self.held.items():
            end = max(assignment.ledger.next, self._log_end(number))
            checkpoint = assignment.ledger.checkpoint
            counts[number] = max(0, end - checkpoint.base - checkpoint.resolved.bit_count())
        return counts

    # -- errors of one partition

    def handle_error(self, problem: KafkaError, partition: int | None) -> bool:
        """Act on an error that concerns one partition held. Returns whether it was such an error."""
        assignment = self._assignment_of(partition)
        if assignment is None:
            return False
        if problem.code() in _LOG_GONE:
            next_offset = assignment.ledger.next
            # The error code is the same for a log that was deleted.
            if "truncat" in problem.str():
                why = (
                    f"its log went back below offset {next_offset}, which was delivered before: "
                    f"{problem.str()}"
                )
                self._stop_gone_back(assignment, why[:MAX_REASON_CHARACTERS])
            else:
                self._stop(
                    assignment,
                    f"its log does not have offset {next_offset} ({problem.str()}): requests were deleted "
                    f"before they were served",
                )
            return True
        if problem.code() in _UNREADABLE:
            reason = problem.str()[:MAX_REASON_CHARACTERS]
            self._stalls.report_unreadable(assignment.number, assignment.ledger.next, reason)
            return True
        return False

    def _stop(self, assignment: Assignment, why: str) -> None:
        """Serve nothing new of a partition until an operator has decided."""
        assignment.stopped = True
        reason = (
            f"partition {assignment.number} is stopped: {why}. To go on with what the log has, stop the "
            f"workers and reset the group's offset for this partition"
        )
        position = {"partition": assignment.number, "offset": assignment.ledger.checkpoint.base}
        log.error(reason, extra=position)
        self._health.hold(f"partition-{assignment.number}", reason, assignment.number)

    def _stop_gone_back(self, before: Assignment, why: str) -> None:
        """Stop a partition whose log went back, and drop what was fetched: its offsets may belong to other
        records now. The next commit tells the partition's next owner."""
        after = replace(before, count=0, size=0, claimed=False, gone_back=why)
        self._window.leave([before.number])
        self._cancellations.leave([before.number])
        self._window.begin(after)
        self._stop(after, why)

    def _log_end(self, number: int) -> int:
        """End of the log, open transactions included, as of the last fetch; makes no request."""
        watermarks = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
        return watermarks[1] if watermarks else 0

    def _assignment_of(self, partition: int | None) -> Assignment | None:
        return None if partition is None else self.held.get(partition)
