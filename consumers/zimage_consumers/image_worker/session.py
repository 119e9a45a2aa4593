"""One membership in the consumer group: its consumer, its publisher, and the partitions it holds.

Everything here runs on the Kafka thread, rebalance callbacks included (they run inside ``poll``), so
no commit can be made from a newer state than the membership it is sent under. When what the broker
has is not known any more, the whole session is thrown away and a new one starts from the committed
checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from zimage_consumers.image_worker.checkpoint import Checkpoint, Ledger, Mark, release, take_over
from zimage_consumers.image_worker.publish import (
    ClientsLostError,
    CommitRefusedError,
    PlainPublisher,
    Publisher,
    TransactionalPublisher,
)
from zimage_consumers.image_worker.terminal import Outgoing
from zimage_stream.errors import ZImageError
from zimage_stream.kafka.clients import transactional_id, worker_consumer_config
from zimage_stream.settings import Settings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

TAKE_OVER_TIMEOUT_S = 0.25
"""Of reading checkpoints, while which nothing else is done here."""
TAKE_OVER_SHARE = 0.1
"""Of the time that partitions have waited, where that is longer: the broker may be slow."""
TAKE_OVER_MOST_S = 2.0
"""However long: nobody feeds the device meanwhile, and what an open transaction holds up no wait will get."""
TAKE_OVER_PAUSE_S = 1.0
PROBE_TIMEOUT_S = 1.0
_CONNECTIONS = frozenset((KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._RESOLVE))
_NOT_YET = frozenset((KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._WAIT_COORD))


def patience_s(waited_s: float) -> float:
    """How long to wait for the answer about checkpoints that have been waited for so long."""
    return min(max(TAKE_OVER_TIMEOUT_S, waited_s * TAKE_OVER_SHARE), TAKE_OVER_MOST_S)


@dataclass(eq=False, slots=True)
class Held:
    """A partition while it is ours.

    Attributes:
        epoch: number of this assignment, never used again in this process.
        count, size: requests of it in the window, and their bytes.
        roomy: the window has room for more of it.
        claimed: the broker knows that this process has it.
        leaving: being revoked; nothing new is started.
        stopped: the log no longer has what is next; the operator decides.
    """

    epoch: int
    ledger: Ledger
    count: int = 0
    size: int = 0
    roomy: bool = True
    claimed: bool = False
    leaving: bool = False
    stopped: bool = False


class Session:
    """See the module.

    Args:
        owner: nonce of this process, as checkpoints name it.
        first_epoch: above every epoch of former sessions.
        on_revoke: called with partitions that are to be given back, while they are still held.
        on_gone: called with partitions after they are gone, for whatever reason.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        slot: str,
        owner: int,
        first_epoch: int,
        give_up: Callable[[], bool],
        on_revoke: Callable[[Collection[int]], None],
        on_gone: Callable[[Collection[int]], None],
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._topic = settings.topics.requests
        self._owner = owner
        self.epoch = first_epoch
        self._on_revoke = on_revoke
        self._on_gone = on_gone
        self._health = health
        self._metrics = metrics
        self.held: dict[int, Held] = {}
        self.clean = True
        """Nothing that it held was left without being released."""
        self._arriving: deque[int] = deque()
        self._arrived_at = 0.0
        self._ask_at = 0.0
        self._one_by_one = False
        self._give_up = give_up
        self._paused: set[int] = set()
        self._broken: Exception | None = None
        self._abandoned = False
        self._closed = False
        self._publishing = False
        kafka = settings.kafka
        self._consumer = Consumer(
            {**worker_consumer_config(kafka, settings.worker.group_id, slot), "error_cb": self._on_error}
        )
        self._publisher: Publisher
        if settings.worker.guarantee == "exactly_once":
            name = transactional_id(kafka, settings.worker.group_id, slot)
            self._publisher = TransactionalPublisher(
                kafka, name, self._topic, self._consumer, give_up, health
            )
        else:
            self._publisher = PlainPublisher(kafka, self._consumer, give_up, health)

    def start_publisher(self) -> None:
        """Take the slot: a dead predecessor's transaction is ended. Raises ClientsLostError."""
        if not self._publishing:
            self._publisher.start()
            self._publishing = True

    def join(self) -> None:
        """Enter the group, with the slot taken. Partitions come through :meth:`poll`."""
        self.start_publisher()
        self._consumer.subscribe(
            [self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )

    def poll(self, timeout_s: float) -> Message | None:
        """The next record, and whatever the group has to say.

        One at a time: a batch could hold records from before a rebalance that ran inside the same call.

        Raises:
            ClientsLostError: this session is over.
        """
        message = self._consumer.poll(timeout_s)
        self._raise_broken()
        self._take_over()
        if message is None:
            return None
        problem = message.error()
        if problem is None:
            self._health.up("kafka")
            return message
        self._judge(problem, message.partition())
        return None

    def claim(self) -> None:
        """Let the broker know which partitions this process took over, before anything of theirs starts.

        Raises:
            CommitRefusedError, ClientsLostError: see ``Publisher.commit``.
        """
        new = {number: held for number, held in self.held.items() if not held.claimed}
        if new:
            self._commit({number: held.ledger.checkpoint for number, held in new.items()})
            for held in new.values():
                held.claimed = True

    def mark(self, changes: Mapping[int, Mapping[int, Mark | None]]) -> None:
        """Commit marks, by partition and offset, and wait for the answer. Raises as :meth:`claim`."""
        with self._metrics.mark_seconds.time():
            self._commit({p: self.held[p].ledger.after(marks=marks) for p, marks in changes.items()})
        self._metrics.marks.inc()

    def publish(self, records: list[Outgoing], checkpoints: Mapping[int, Checkpoint]) -> None:
        """Produce the records and commit the checkpoints, together. Raises as ``Publisher.publish``."""
        self._publisher.publish(records, self._offsets(checkpoints))
        self._adopt(checkpoints)

    def release(self, partitions: Iterable[int]) -> None:
        """Let go cleanly: nothing of these partitions runs, and whoever comes next accuses nobody."""
        held = {p: release(self.held[p].ledger.checkpoint) for p in partitions if p in self.held}
        if not held:
            return
        try:
            self._commit(held)
        except CommitRefusedError as error:
            log.warning("partitions %s were taken before they could be released: %s", sorted(held), error)

    def regulate(self, stop: Callable[[Held], bool]) -> None:
        """Pause the partitions for which ``stop`` says so, and resume the others."""
        wanted = {number for number, held in self.held.items() if held.leaving or stop(held)}
        if wanted == self._paused:
            return
        pause, resume = wanted - self._paused, (self._paused - wanted) & self.held.keys()
        if pause:
            self._consumer.pause([TopicPartition(self._topic, number) for number in pause])
        if resume:
            self._consumer.resume([TopicPartition(self._topic, number) for number in resume])
        self._paused = wanted

    def unresolved(self) -> dict[int, int]:
        """Requests without a terminal event in each partition held, as far as its end is known here."""
        out = {}
        for number, held in self.held.items():
            place = TopicPartition(self._topic, number)
            # What the last fetch was told; nobody is asked.
            marks = self._consumer.get_watermark_offsets(place, cached=True)
            end = max(held.ledger.next, marks[1] if marks else 0)
            checkpoint = held.ledger.checkpoint
            out[number] = max(0, end - checkpoint.base - checkpoint.resolved.bit_count())
        return out

    def probe(self) -> None:
        """Ask the brokers for a sign of life while they are taken for dead."""
        try:
            self._consumer.list_topics(self._topic, timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            self._health.down("kafka", error.args[0].str())
        else:
            self._health.up("kafka")

    def close(self) -> None:
        """Give every partition back and leave the group. Raises ClientsLostError where that failed."""
        self._close_clients()
        self._raise_broken()

    def abandon(self) -> None:
        """Leave the group as a dead process would: no commit is made, marks stay as they are."""
        self._abandoned = True
        self.clean &= not self.held
        self._close_clients()
        self._forget(list(self.held))

    def _close_clients(self) -> None:
        if not self._closed:
            self._closed = True
            self._consumer.close()
            self._publisher.close()

    def _raise_broken(self) -> None:
        """Raise what went wrong inside a callback, once."""
        broken, self._broken = self._broken, None
        if isinstance(broken, ZImageError):
            raise broken
        if broken is not None:
            raise ClientsLostError(f"a rebalance failed: {broken}") from broken

    def _commit(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        self._publisher.commit(self._offsets(checkpoints))
        self._adopt(checkpoints)
        self._health.up("kafka")

    def _adopt(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        for number, checkpoint in checkpoints.items():
            self.held[number].ledger.adopt(checkpoint)

    def _offsets(self, checkpoints: Mapping[int, Checkpoint]) -> list[TopicPartition]:
        return [
            TopicPartition(self._topic, number, checkpoint.base, checkpoint.encode())
            for number, checkpoint in checkpoints.items()
        ]

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        self._arriving.extend(partition.partition for partition in partitions)
        self._arrived_at = self._ask_at = time.monotonic()
        self._one_by_one = False
        # Each is assigned once its checkpoint is read; until then nothing of it is fetched.
        consumer.incremental_assign([])

    def _take_over(self) -> None:
        """Begin with the partitions that the group gave us, from where their checkpoints say.

        A checkpoint cannot be read while a transaction is open that a dead predecessor began, up to 20 s.
        What we hold goes on meanwhile, and so does what can be read.

        Raises:
            ClientsLostError: the broker refuses to say.
        """
        at = time.monotonic()
        if not self._arriving or at < self._ask_at or self._give_up():
            return
        asked = [self._arriving[0]] if self._one_by_one else list(self._arriving)
        try:
            checkpoints = self._read_checkpoints(asked, patience_s(at - self._arrived_at))
        except KafkaException as error:
            problem = error.args[0]
            if problem.code() not in _NOT_YET:
                raise ClientsLostError(f"checkpoints of {asked} cannot be read: {problem.str()}") from error
            if not self._one_by_one:
                log.warning("partitions %s wait: not all of their checkpoints can be read yet", sorted(asked))
            self._arriving.rotate(-len(asked))
            self._one_by_one = True
            self._ask_at = time.monotonic() + TAKE_OVER_PAUSE_S
            return
        for number, checkpoint in checkpoints.items():
            self._arriving.remove(number)
            self.epoch += 1
            self.held[number] = Held(self.epoch, Ledger(take_over(checkpoint, self._owner)))
        starts = [TopicPartition(self._topic, number, found.base) for number, found in checkpoints.items()]
        # The client keeps a pause through revocation and assignment, and we forgot it when they left us.
        # Of those that are not paused it does nothing. Done before they start, so that it meets no start.
        self._consumer.resume(starts)
        self._consumer.incremental_assign(starts)
        log.info("took over partitions %s", sorted(checkpoints))

    def _read_checkpoints(self, numbers: list[int], timeout_s: float) -> dict[int, Checkpoint]:
        places = [TopicPartition(self._topic, number) for number in numbers]
        checkpoints = {}
        for found in self._consumer.committed(places, timeout=timeout_s):
            if found.error is not None:
                raise KafkaException(found.error)
            checkpoints[found.partition] = self._read(found, timeout_s)
        return checkpoints

    def _read(self, found: TopicPartition, timeout_s: float) -> Checkpoint:
        if found.offset == OFFSET_INVALID:
            low, _ = self._consumer.get_watermark_offsets(found, timeout=timeout_s)
            return Checkpoint(low)
        if not found.metadata:
            return Checkpoint(found.offset)
        try:
            return Checkpoint.decode(found.metadata, found.offset)
        except ValueError as error:
            log.warning(
                "the checkpoint of partition %d is not used: %s", found.partition, error,
                extra={"partition": found.partition, "offset": found.offset},
            )  # fmt: skip
            return Checkpoint(found.offset)

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        mine = self.held.keys() & numbers
        # An exception raised here would leave the partitions assigned and delivering.
        try:
            self._metrics.rebalances.labels("revoked").inc()
            if not self._abandoned:
                for number in mine:
                    self.held[number].leaving = True
                self._on_revoke(mine)
                self.release(mine)
        except Exception as error:
            self._broken = error
            self.clean = False
        self._unassign(self._forget(numbers))

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("lost").inc()
        numbers = [partition.partition for partition in partitions]
        log.warning("partitions %s were lost: somebody else has them", sorted(numbers))
        self._unassign(self._forget(numbers))

    def _forget(self, numbers: Collection[int]) -> set[int]:
        """Hold these no more. Returns those that were held."""
        mine = self.held.keys() & numbers
        for number in mine:
            del self.held[number]
        self._paused -= mine
        self._arriving = deque(number for number in self._arriving if number not in numbers)
        self._on_gone(mine)
        return mine

    def _unassign(self, numbers: Collection[int]) -> None:
        self._consumer.incremental_unassign([TopicPartition(self._topic, number) for number in numbers])

    def _judge(self, problem: KafkaError, partition: int | None) -> None:
        if problem.code() == KafkaError._AUTO_OFFSET_RESET and partition in self.held:
            self.held[partition].stopped = True
            base = self.held[partition].ledger.checkpoint.base
            reason = (
                f"partition {partition} is stopped: its log does not have offset {base} any more "
                f"({problem.str()}); requests were deleted before they were served. Reset the group's "
                f"offset for this partition to go on without them"
            )
            log.error(reason, extra={"partition": partition, "offset": base})
            self._health.hold(f"partition-{partition}", reason)
        elif problem.fatal():
            raise ClientsLostError(f"the consumer failed: {problem.str()}")
        else:
            self._on_error(problem)

    def _on_error(self, problem: KafkaError) -> None:
        if problem.code() in _CONNECTIONS:
            # One of many brokers, or the same one again and again; when the last is gone we are told.
            log.debug("kafka: %s: %s", problem.name(), problem.str())
            return
        if self._health.is_up("kafka"):
            log.warning("kafka: %s: %s", problem.name(), problem.str())
        if problem.code() == KafkaError._ALL_BROKERS_DOWN or not problem.retriable():
            self._health.down("kafka", problem.str())
