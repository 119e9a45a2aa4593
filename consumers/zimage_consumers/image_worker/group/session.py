"""One membership in the consumer group: its consumer, its publisher, and the partitions it holds.

Everything here runs on the Kafka thread, rebalance callbacks included (they run inside ``poll``), so
no commit can be made from a newer state than the membership it is sent under. When what the broker
has is not known any more, the whole session is thrown away and a new one starts from the committed
checkpoints.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.group.publish import (
    ClientsLostError,
    CommitRefusedError,
    Outgoing,
    PlainPublisher,
    Publisher,
    TransactionalPublisher,
)
from zimage_consumers.image_worker.group.stalls import Stalls
from zimage_consumers.image_worker.group.takeover import TakeOver
from zimage_consumers.image_worker.group.topic_identity import TopicIdentity
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job
from zimage_consumers.image_worker.window.ledger import Ledger, release
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import GONE_BACK, Checkpoint, Mark
from zimage_stream.errors import ZImageError
from zimage_stream.kafka.clients import transactional_id, worker_consumer_config
from zimage_stream.kafka.members import member_name
from zimage_stream.kafka.record import Record, record_of
from zimage_stream.settings import Settings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

ARRIVING_POLL_S = 0.01
"""Of a poll while partitions are to be taken over: their answers come meanwhile."""
PROBE_TIMEOUT_S = 1.0
SETTLE_S = 1.0
"""After which a base that only gaps in the log have moved is committed: so long may more records follow."""
MAX_REASON_CHARACTERS = 500
_CONNECTIONS = frozenset((KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._RESOLVE))
_LOG_GONE = frozenset((KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION))
"""The log does not have the next offset: it was deleted before it was served, or the log went back."""
_UNREADABLE = frozenset((KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION))
"""A batch of which the client says that it cannot read it; of most it says nothing."""


class Session:
    """See the module.

    Args:
        admin: asked about the group and the topic; it outlives sessions.
        owner: nonce of this process, as checkpoints name it.
        window: told of the partitions that come and go.
        on_revoke: called with this session once partitions are to be given back, while they are still held.
    """

    def __init__(
        self,
        settings: Settings,
        admin: AdminClient,
        window: Window,
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
        """Nothing that it held was left without being released."""
        self._give_up = give_up
        self._paused: set[int] = set()
        self._broken: Exception | None = None
        self._abandoned = False
        self._closed = False
        self._publishing = False
        kafka, group_id = settings.kafka, settings.worker.group_id
        self._arriving = TakeOver(admin, group_id, self._topic, owner, health)
        self._identity = TopicIdentity(admin, self._topic)
        self._stalls = Stalls(admin, self._topic, health)
        self._replaced = False
        self._consumer = Consumer(
            {
                **worker_consumer_config(kafka, group_id, member_name(slot, owner)),
                "enable.partition.eof": True,
                "error_cb": self._on_error,
            }
        )
        self._publisher: Publisher
        if settings.worker.guarantee == "exactly_once":
            name = transactional_id(kafka, settings.worker.group_id, slot)
            self._publisher = TransactionalPublisher(
                kafka, name, self._topic, self._consumer, give_up, health
            )
        else:
            self._publisher = PlainPublisher(kafka, self._consumer, give_up, health)

    @property
    def _held(self) -> dict[int, Assignment]:
        return self.window.assignments

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

    def poll(self, timeout_s: float) -> Record | None:
        """The next record, and whatever the group has to say.

        One at a time: a batch could hold records from before a rebalance that ran inside the same call.

        Raises:
            ClientsLostError: this session is over.
        """
        if self._identity.changed():
            self._stop_all()
        if self._arriving:
            timeout_s = min(timeout_s, ARRIVING_POLL_S)
        while True:
            message = self._consumer.poll(timeout_s)
            self._raise_broken()
            self._begin_arrived()
            if message is None:
                self._look_for_stalls()
                return None
            problem = message.error()
            if problem is None:
                self.health.up("kafka")
                self._note_epoch(message)
                return record_of(message)
            if problem.code() != KafkaError._PARTITION_EOF:
                self._judge(problem, message.partition())
                return None
            self._at_end(message)
            timeout_s = 0.0

    def claim(self) -> None:
        """Let the broker know which partitions this process took over, before anything of theirs starts; and
        of bases that gaps in the log have moved.

        Raises:
            CommitRefusedError, ClientsLostError: see ``Publisher.commit``.
        """
        now = time.monotonic()
        due = {
            number: held for number, held in self._held.items() if not held.claimed or held.settle_at <= now
        }
        if due:
            self._commit({number: held.ledger.checkpoint for number, held in due.items()})
            for held in due.values():
                held.claimed = True

    def mark(self, marks: Mapping[Job, Mark]) -> None:
        """Commit the marks of jobs, and wait for the answer. Raises as :meth:`claim`."""
        changes: dict[Assignment, dict[int, Mark]] = defaultdict(dict)
        for job, mark in marks.items():
            changes[job.assignment][job.record.offset] = mark
        with self._metrics.mark_seconds.time():
            self._commit({each.number: each.ledger.after(marks=notes) for each, notes in changes.items()})
        self._metrics.marks.inc()

    def publish(self, records: list[Outgoing], checkpoints: Mapping[int, Checkpoint]) -> None:
        """Produce the records and commit the checkpoints, together. Raises as ``Publisher.publish``."""
        self._publisher.publish(records, self._offsets(checkpoints))
        self._adopt(checkpoints)

    def release(self, partitions: Iterable[int]) -> None:
        """Let go cleanly: nothing of these partitions runs, and whoever comes next accuses nobody."""
        mine = self._held.keys() & set(partitions)
        if not mine:
            return
        try:
            self._commit({number: release(self._held[number].ledger.checkpoint) for number in mine})
        except CommitRefusedError as error:
            log.warning("partitions %s were taken before they could be released: %s", sorted(mine), error)

    def regulate(self, to_pause: set[int]) -> None:
        """Fetch nothing more of these partitions, and go on with the others."""
        if to_pause == self._paused:
            return
        pause, resume = to_pause - self._paused, (self._paused - to_pause) & self._held.keys()
        if pause:
            self._consumer.pause([TopicPartition(self._topic, number) for number in pause])
        if resume:
            self._consumer.resume([TopicPartition(self._topic, number) for number in resume])
        self._paused = to_pause

    def unresolved(self) -> dict[int, int]:
        """Requests without a terminal event in each partition held, as far as its end is known here."""
        out = {}
        for number, held in self._held.items():
            end = max(held.ledger.next, self._end(number))
            checkpoint = held.ledger.checkpoint
            out[number] = max(0, end - checkpoint.base - checkpoint.resolved.bit_count())
        return out

    @property
    def stalled(self) -> int:
        """Partitions that deliver nothing though their log has more."""
        return self._stalls.count

    def probe(self) -> None:
        """Ask the brokers for a sign of life while they are taken for dead."""
        try:
            self._consumer.list_topics(self._topic, timeout=PROBE_TIMEOUT_S)
        except KafkaException as error:
            self.health.down("kafka", error.args[0].str())
        else:
            self.health.up("kafka")

    def close(self) -> None:
        """Give every partition back and leave the group. Raises ClientsLostError where that failed."""
        self._close_clients()
        self._raise_broken()

    def abandon(self) -> None:
        """Leave the group as a dead process would: no commit is made, marks stay as they are."""
        self._abandoned = True
        self.clean &= not self._held
        self._close_clients()
        self._forget(list(self._held))

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
        self.health.up("kafka")

    def _adopt(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        for number, checkpoint in checkpoints.items():
            self._held[number].ledger.adopt(checkpoint)
            self._held[number].settle_at = math.inf

    def _offsets(self, checkpoints: Mapping[int, Checkpoint]) -> list[TopicPartition]:
        places = []
        for number, checkpoint in checkpoints.items():
            held = self._held[number]
            metadata = checkpoint.encode() if held.gone_back is None else GONE_BACK + held.gone_back
            epoch = held.leader_epoch
            places.append(TopicPartition(self._topic, number, checkpoint.base, metadata, epoch))
        return places

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        if not self._replaced:
            self._arriving.add([partition.partition for partition in partitions])
        # Each is assigned once its checkpoint is read; until then nothing of it is fetched.
        consumer.incremental_assign([])

    def _begin_arrived(self) -> None:
        """Begin with the partitions that the group gave us, from where their checkpoints say.

        Raises:
            ClientsLostError: the brokers refuse to say.
        """
        if self._give_up():
            return
        begin = self._arriving.ready()
        if not begin:
            return
        for number, beginning in begin.items():
            began = Assignment(number, Ledger(beginning.checkpoint), leader_epoch=beginning.leader_epoch)
            self.window.begin(began)
            if beginning.gone_back is not None:
                self._stop_gone_back(began, beginning.gone_back)
        starts = [
            TopicPartition(self._topic, number, each.checkpoint.base, "", each.leader_epoch)
            for number, each in begin.items()
        ]
        # The client keeps a pause through revocation and assignment, and we forgot it when they left us.
        # Of those that are not paused it does nothing. Done before they start, so that it meets no start.
        self._consumer.resume(starts)
        self._consumer.incremental_assign(starts)
        log.info("took over partitions %s", sorted(begin))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [partition.partition for partition in partitions]
        mine = self._held.keys() & numbers
        # An exception raised here would leave the partitions assigned and delivering.
        try:
            self._metrics.rebalances.labels("revoked").inc()
            if not self._abandoned:
                for number in mine:
                    self._held[number].leaving = True
                self._on_revoke(self)
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
        mine = self.window.leave(numbers)
        self._paused -= mine
        self.health.release_partitions(mine)
        self._stalls.drop(mine)
        self._arriving.drop(numbers)
        return mine

    def _unassign(self, numbers: Collection[int]) -> None:
        self._consumer.incremental_unassign([TopicPartition(self._topic, number) for number in numbers])

    def _note_epoch(self, message: Message) -> None:
        held = self._held.get(-1 if (number := message.partition()) is None else number)
        epoch = message.leader_epoch()
        if held is not None and epoch is not None:
            held.leader_epoch = epoch

    def _end(self, number: int) -> int:
        """The end of the log as the last fetch was told, with transactions that are open; nobody is asked."""
        marks = self._consumer.get_watermark_offsets(TopicPartition(self._topic, number), cached=True)
        return marks[1] if marks else 0

    def _look_for_stalls(self) -> None:
        """Nothing has come. Behind a poll that found something there might be more of any partition."""
        if not self._stalls.due():
            return
        held = {number: each.ledger.next for number, each in self._held.items()}
        fetched = held.keys() - self._paused
        self._stalls.watch(held, [number for number in fetched if self._end(number) > held[number]])

    def _at_end(self, message: Message) -> None:
        """All that the log has is delivered. What lies between the last record and its end is none: markers
        of transactions, aborted records. Left below the base they would look like lost requests once
        retention deletes them."""
        number, end = message.partition(), message.offset()
        held = self._held.get(-1 if number is None else number)
        if held is None or end is None:
            return
        before = held.ledger.checkpoint.base
        held.ledger.reach(end)
        if held.ledger.checkpoint.base > before:
            held.settle_at = min(held.settle_at, time.monotonic() + SETTLE_S)

    def _stop(self, stopped: Assignment, why: str) -> None:
        """Serve nothing new of a partition until an operator has decided."""
        stopped.stopped = True
        reason = (
            f"partition {stopped.number} is stopped: {why}. To go on with what the log has, stop the workers "
            f"and reset the group's offset for this partition"
        )
        place = {"partition": stopped.number, "offset": stopped.ledger.checkpoint.base}
        log.error(reason, extra=place)
        self.health.hold(f"partition-{stopped.number}", reason, stopped.number)

    def _stop_gone_back(self, before: Assignment, why: str) -> None:
        """As :meth:`_stop`, and drop what was taken: its offsets may belong to other records now. The next
        commit says so to whoever takes the partition over."""
        after = replace(before, count=0, size=0, claimed=False, gone_back=why)
        self.window.leave([before.number])
        self.window.begin(after)
        self._stop(after, why)

    def _stop_all(self) -> None:
        """The topic is another one now. Offsets of the old one mean nothing in it."""
        self._replaced = True
        reason = (
            f"topic {self._topic} was deleted and made again while this worker ran, so nothing of it is "
            f"served: stop all workers, reset the group's offsets to the earliest, and start them again"
        )
        log.error(reason)
        self.health.hold("topic", reason)
        self._arriving.drop(list(self._arriving.numbers))
        for held in self._held.values():
            held.gone_back = f"its log went back: topic {self._topic} was deleted and made again"
        try:
            if self._held:
                self._commit({number: held.ledger.checkpoint for number, held in self._held.items()})
        except (CommitRefusedError, ClientsLostError) as error:
            log.warning("whoever comes next is not told: %s", error)
        self._unassign(self._forget(list(self._held)))

    def _judge(self, problem: KafkaError, partition: int | None) -> None:
        held = self._held.get(-1 if partition is None else partition)
        if held is not None and problem.code() in _LOG_GONE:
            # The code says the same of a log that was deleted.
            if "truncat" in problem.str():
                taken = held.ledger.next
                why = f"its log went back below offset {taken}, which was taken already: {problem.str()}"
                self._stop_gone_back(held, why[:MAX_REASON_CHARACTERS])
            else:
                self._stop(
                    held,
                    f"its log does not have offset {held.ledger.next} ({problem.str()}): requests were "
                    f"deleted before they were served",
                )
        elif held is not None and problem.code() in _UNREADABLE:
            self._stalls.cannot_read(held.number, held.ledger.next, problem.str()[:MAX_REASON_CHARACTERS])
        elif problem.fatal():
            raise ClientsLostError(f"the consumer failed: {problem.str()}")
        else:
            self._on_error(problem)

    def _on_error(self, problem: KafkaError) -> None:
        if problem.code() in _CONNECTIONS:
            # One of many brokers, or the same one again and again; when the last is gone we are told.
            log.debug("kafka: %s: %s", problem.name(), problem.str())
            return
        if self.health.is_up("kafka"):
            log.warning("kafka: %s: %s", problem.name(), problem.str())
        if problem.code() == KafkaError._ALL_BROKERS_DOWN or not problem.retriable():
            self.health.down("kafka", problem.str())
