"""One membership in the consumer group: its clients, its rebalances and its commits.

Everything here runs on the Kafka thread, rebalance callbacks included (they run inside ``poll``), so no
commit can be made from a newer state than the membership it is sent under. When it is no longer known what
the broker has, the whole session is discarded and a new one starts from the committed checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.group.cancellations import Cancellations
from zimage_consumers.image_worker.group.partitions import Partitions
from zimage_consumers.image_worker.group.publish import (
    ClientsLostError,
    CommitRefusedError,
    OutgoingRecord,
    create_publisher,
)
from zimage_consumers.image_worker.group.takeover import ArrivingPartitions
from zimage_consumers.image_worker.group.topic_identity import TopicIdentity
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job
from zimage_consumers.image_worker.window.ledger import release
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.errors import ZImageError
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import worker_consumer_config
from zimage_stream.kafka.members import member_name
from zimage_stream.kafka.record import Record, record_of
from zimage_stream.settings import Settings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

ARRIVING_POLL_S = 0.01
"""Longest poll, in seconds, while partitions are being taken over: checkpoints and cancellations arrive."""
PROBE_TIMEOUT_S = 1.0
_CONNECTIONS = frozenset((KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._RESOLVE))


class Session:
    """A membership in the consumer group: a consumer, a publisher, and the partitions they hold.

    Args:
        admin: queries the group and the topic; it outlives sessions.
        owner: nonce of this process, as checkpoints name it.
        window: told which partitions come and go.
        give_up: polled during waits; ``True`` ends them.
        on_revoke: called with this session before partitions are given back, while they are still held.
    """

    def __init__(
        self,
        settings: Settings,
        admin: AdminClient,
        window: Window,
        codec: Codec,
        *,
        slot: str,
        owner: int,
        give_up: Callable[[], bool],
        on_revoke: Callable[[Session], None],
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._topic = settings.topics.requests
        self.window = window
        self._on_revoke = on_revoke
        self.health = health
        self._metrics = metrics
        self.clean = True
        """Whether every partition that left was released first."""
        self._give_up = give_up
        self._callback_error: Exception | None = None
        self._abandoned = False
        self._closed = False
        self._publishing = False
        self._recreated = False
        kafka, group_id = settings.kafka, settings.worker.group_id
        self._identity = TopicIdentity(admin, self._topic)
        self._consumer = Consumer(
            {
                **worker_consumer_config(kafka, group_id, member_name(slot, owner)),
                "enable.partition.eof": True,
                "error_cb": lambda problem: note_error(problem, health),
            }
        )
        arriving = ArrivingPartitions(admin, group_id, self._topic, owner, health)
        self.cancellations = Cancellations(settings, admin, codec, health)
        self.partitions = Partitions(
            self._consumer, self._topic, arriving, self.cancellations, window, admin, health
        )
        self._publisher = create_publisher(settings, slot, self._consumer, give_up, health)

    @property
    def _held(self) -> dict[int, Assignment]:
        return self.partitions.held

    # -- joining and leaving

    def start_publisher(self) -> None:
        """Claim the slot, ending a dead predecessor's transaction. Raises ClientsLostError."""
        if not self._publishing:
            self._publisher.start()
            self._publishing = True

    def join(self) -> None:
        """Claim the slot and join the group. Partitions arrive during :meth:`poll`."""
        self.start_publisher()
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def close(self) -> None:
        """Give every partition back and leave the group. Raises ClientsLostError where that failed."""
        self._close_clients()
        self._raise_callback_error()

    def abandon(self) -> None:
        """Leave the group as a dead process would: commit nothing and keep all marks as they are."""
        self._abandoned = True
        self.clean &= not self._held
        self._close_clients()
        self.partitions.drop(list(self._held))

    def _close_clients(self) -> None:
        if not self._closed:
            self._closed = True
            self._consumer.close()
            self.cancellations.close()
            self._publisher.close()

    # -- polling

    def poll(self, timeout_s: float) -> Record | None:
        """Return the next record, if any, and process rebalances and errors.

        One record at a time: a batch could hold records from before a rebalance that ran inside the same
        call.

        Raises:
            ClientsLostError: this session is over.
        """
        if self._identity.changed():
            self._stop_recreated()
        if self.partitions.arriving or self.cancellations.behind:
            timeout_s = min(timeout_s, ARRIVING_POLL_S)
        while True:
            message = self._consumer.poll(timeout_s)
            self._raise_callback_error()
            if not self._give_up():
                self.partitions.start_arrived()
            if message is None:
                self.partitions.check_stalls()
                return None
            problem = message.error()
            if problem is None:
                self.health.up("kafka")
                self.partitions.note_epoch(message)
                return record_of(message)
            if problem.code() != KafkaError._PARTITION_EOF:
                if not self.partitions.handle_error(problem, message.partition()):
                    if problem.fatal():
                        raise ClientsLostError(f"the consumer failed: {problem.str()}")
                    note_error(problem, self.health)
                return None
            self.partitions.reach_end(message)
            timeout_s = 0.0

    def pause_only(self, to_pause: set[int]) -> None:
        """Pause fetching from exactly these partitions and resume all others."""
        self.partitions.pause_only(to_pause)

    def probe(self) -> None:
        """Check whether the brokers respond, while they are considered down."""
        try:
            self._consumer.list_topics(self._topic, timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            self.health.down("kafka", error.args[0].str())
        else:
            self.health.up("kafka")

    # -- committing

    def claim(self) -> None:
        """Commit this process as the owner of partitions it took over, before any of their requests starts,
        and commit bases that only gaps in the log have moved.

        Raises:
            CommitRefusedError, ClientsLostError: see ``Publisher.commit``.
        """
        now = time.monotonic()
        due = [each for each in self._held.values() if not each.claimed or each.settle_at <= now]
        if due:
            self._commit({assignment.number: assignment.ledger.checkpoint for assignment in due})
            for assignment in due:
                assignment.claimed = True

    def commit_marks(self, marks: Mapping[Job, Mark]) -> None:
        """Commit the marks of jobs, and wait for the answer. Raises as :meth:`claim`."""
        changes: dict[Assignment, dict[int, Mark]] = defaultdict(dict)
        for job, mark in marks.items():
            changes[job.assignment][job.record.offset] = mark
        with self._metrics.mark_seconds.time():
            self._commit({each.number: each.ledger.after(marks=changed) for each, changed in changes.items()})
        self._metrics.marks.inc()

    def publish(self, records: list[OutgoingRecord], checkpoints: Mapping[int, Checkpoint]) -> None:
        """Produce the records and commit the checkpoints together. Raises as ``Publisher.publish``."""
        self._publisher.publish(records, self.partitions.offsets(checkpoints))
        self.partitions.adopt(checkpoints)

    def release(self, partitions: Iterable[int]) -> None:
        """Release partitions cleanly: nothing of theirs runs, so their next owner suspects no request."""
        released = self._held.keys() & set(partitions)
        if not released:
            return
        try:
            self._commit({number: release(self._held[number].ledger.checkpoint) for number in released})
        except CommitRefusedError as error:
            log.warning("partitions %s were reassigned before their release: %s", sorted(released), error)

    def _commit(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        self._publisher.commit(self.partitions.offsets(checkpoints))
        self.partitions.adopt(checkpoints)
        self.health.up("kafka")

    # -- rebalances and errors

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        if not self._recreated:
            self.partitions.arriving.add([partition.partition for partition in partitions])
        # Each is assigned once its checkpoint has been read; until then none of its records is fetched.
        consumer.incremental_assign([])

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        revoked = self._held.keys() & numbers
        # An exception raised here would leave the partitions assigned and delivering.
        try:
            self._metrics.rebalances.labels("revoked").inc()
            if not self._abandoned:
                for number in revoked:
                    self._held[number].leaving = True
                self._on_revoke(self)
                self.release(revoked)
        except Exception as error:
            self._callback_error = error
            self.clean = False
        self.partitions.unassign(self.partitions.drop(numbers))

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("lost").inc()
        numbers = [partition.partition for partition in partitions]
        log.warning("partitions %s were lost: another member has them", sorted(numbers))
        self.partitions.unassign(self.partitions.drop(numbers))

    def _stop_recreated(self) -> None:
        """Stop serving a topic that was deleted and created again: offsets of the old one mean nothing."""
        self._recreated = True
        reason = (
            f"topic {self._topic} was deleted and created again while this worker ran, so nothing of it is "
            f"served: stop all workers, reset the group's offsets to the earliest, and start them again"
        )
        log.error(reason)
        self.health.hold("topic", reason)
        self.partitions.arriving.drop(list(self.partitions.arriving.numbers))
        for assignment in self._held.values():
            assignment.gone_back = f"its log went back: topic {self._topic} was deleted and created again"
        try:
            if self._held:
                self._commit({number: each.ledger.checkpoint for number, each in self._held.items()})
        except (CommitRefusedError, ClientsLostError) as error:
            log.warning("the next owners cannot be told that the topic was created again: %s", error)
        self.partitions.unassign(self.partitions.drop(list(self._held)))

    def _raise_callback_error(self) -> None:
        """Raise what went wrong inside a callback, once."""
        error, self._callback_error = self._callback_error, None
        if isinstance(error, ZImageError):
            raise error
        if error is not None:
            raise ClientsLostError(f"a rebalance failed: {error}") from error


def note_error(problem: KafkaError, health: Health) -> None:
    """Log an error of the consumer, and report Kafka as down where it means that."""
    if problem.code() in _CONNECTIONS:
        # One of many brokers, or the same one repeatedly; the client reports when the last one is gone.
        log.debug("kafka: %s: %s", problem.name(), problem.str())
        return
    if health.is_up("kafka"):
        log.warning("kafka: %s: %s", problem.name(), problem.str())
    if problem.code() == KafkaError._ALL_BROKERS_DOWN or not problem.retriable():
        health.down("kafka", problem.str())
