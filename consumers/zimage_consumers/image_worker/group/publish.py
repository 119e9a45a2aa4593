"""Terminal events and checkpoints, out together: the two guarantees behind one call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.group.caller import Caller
from zimage_stream.errors import ZImageError
from zimage_stream.events.headers import Headers, size_of
from zimage_stream.kafka.clients import producer_config, transactional_config
from zimage_stream.settings import KafkaSettings
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
"""Of one call. A call that timed out is made again; the bound is how soon an outage shows."""
HANG_MARGIN_S = 5.0
ABORT_TIMEOUT_S = 8.0
"""An abort may time out again and again; the next producer's start ends the transaction as well."""
_FENCED = frozenset(
    (
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        90,  # PRODUCER_FENCED, which has no name in the Python client
    )
)
_FORGOTTEN = KafkaError.INVALID_PRODUCER_ID_MAPPING
"""The broker has let our transactional id expire, after days without a transaction. librdkafka lets us abort
and asks for no new id where a transaction begins with offsets, so it would be refused for ever."""

_REFUSED = frozenset(
    (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD)
)
"""What a broker says of a record that it will never take."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One record to produce."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """The most bytes that it takes in a batch."""
        return len(self.key or b"") + len(self.value or b"") + size_of(self.headers)


class PublishAbortedError(ZImageError):
    """Nothing of this publication is out; what is still ours is to be published again."""


class CommitRefusedError(ZImageError):
    """The group said no, for certain: nothing is committed. Polling will say what has changed."""


class ClientsLostError(ZImageError):
    """The clients' state is not known any more: both are thrown away and the group is joined anew."""


class FencedError(ClientsLostError):
    """Another producer has our transactional id, or the broker gave our transaction up."""


class RefusedRecordError(ZImageError):
    """Nothing of this publication is out, and a record of it never will be; of several, nobody says which."""


class Publisher(Protocol):
    """Used from the Kafka thread alone."""

    def start(self) -> None:
        """Be ready to publish. Raises ClientsLostError."""
        ...

    def publish(self, records: Sequence[Outgoing], offsets: list[TopicPartition]) -> None:
        """Produce the records and commit the checkpoints that count them as done.

        Raises:
            PublishAbortedError: nothing happened; poll, then try what is still ours.
            RefusedRecordError: as above, and a record is why.
            ClientsLostError: it may or may not have happened; the committed checkpoint says.
        """
        ...

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Commit checkpoints that count nothing more as done: claims, marks, releases.

        Raises:
            CommitRefusedError: it did not happen.
            ClientsLostError: it may have happened; the committed checkpoint says.
        """
        ...

    def close(self) -> None:
        """Let the producer go."""
        ...


class TransactionalPublisher:
    """exactly_once: opened late, so that a transaction lasts milliseconds.

    Args:
        topic: of the requests, whose offsets are committed.
        give_up: asked between calls while the brokers do not answer; True ends the wait.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        transactional_id: str,
        topic: str,
        consumer: Consumer,
        give_up: Callable[[], bool],
        health: Health,
    ) -> None:
        self._topic = topic
        self._consumer = consumer
        self._give_up = give_up
        self._health = health
        self._hung = False
        self._refused: str | None = None
        self._caller = Caller("transactions")
        self._config = transactional_config(settings, transactional_id)
        self._producer = Producer(self._config)

    def start(self) -> None:
        """Take the transactional id: whoever had it is fenced and its open transaction ended.

        An empty transaction over the group's offsets is aborted then. A predecessor's offsets can
        reach the group coordinator after its transaction has ended, as when the broker restarts in
        between; nothing would ever resolve them, and ``committed()``, which waits for stable offsets,
        would time out for ever. The abort's marker sweeps away whatever this id has left pending.
        """
        self._call("init_transactions", lambda: self._producer.init_transactions(CALL_TIMEOUT_S))
        nothing = [TopicPartition(self._topic, 0, 0)]
        group = self._consumer.consumer_group_metadata()
        self._begin()
        # Refused, since we are no member yet; the offsets topic is part of the transaction all the same.
        with suppress(PublishAbortedError):
            self._call(
                "send_offsets_to_transaction",
                lambda: self._producer.send_offsets_to_transaction(nothing, group, CALL_TIMEOUT_S),
            )
        self._abort()

    def publish(self, records: Sequence[Outgoing], offsets: list[TopicPartition]) -> None:
        self._refused = None
        self._begin()
        try:
            for record in records:
                self._produce(record)
            failpoint("produced")
            group = _membership(self._consumer)
            self._call(
                "send_offsets_to_transaction",
                lambda: self._producer.send_offsets_to_transaction(offsets, group, CALL_TIMEOUT_S),
            )
            failpoint("offsets-sent")
            self._call("commit_transaction", lambda: self._producer.commit_transaction(CALL_TIMEOUT_S))
            failpoint("committed")
        except (PublishAbortedError, RefusedRecordError) as error:
            self._abort()
            self._producer.poll(0)
            refusal = self._told_refusal()
            if refusal is not None:
                self._renew()
                raise RefusedRecordError(refusal) from error
            raise

    def commit(self, offsets: list[TopicPartition]) -> None:
        """In a transaction, although one commit needs none: so it takes the producer's connection.

        A commit of the consumer's waits behind its JoinGroup, which the broker answers when the last
        member has joined. While the group waits for a dead member nothing could be marked, and all
        workers would stand still.
        """
        try:
            self.publish([], offsets)
        except PublishAbortedError as error:
            raise CommitRefusedError(str(error)) from error

    def close(self) -> None:
        self._caller.close()
        if not self._hung:
            self._producer.purge()

    def _told_refusal(self) -> str | None:
        """What the brokers said of a record that they will never take, by the deliveries told so far."""
        return self._refused

    def _renew(self) -> None:
        """Go on with a producer that has not met the record. What one that has sends to that partition next
        may never be acknowledged, seen with librdkafka 2.16."""
        self._producer.purge()
        self._producer = Producer(self._config)
        self._call("init_transactions", lambda: self._producer.init_transactions(CALL_TIMEOUT_S))

    def _note_delivery(self, problem: KafkaError | None, _: Any) -> None:
        if problem is not None and problem.code() in _REFUSED:
            self._refused = problem.str()

    def _produce(self, record: Outgoing) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=_sendable(record),
                    on_delivery=self._note_delivery,
                )
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                problem = error.args[0]
                if problem.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise RefusedRecordError(problem.str()) from error
                self._raise(problem, "produce")
            else:
                return

    def _begin(self) -> None:
        # Asks no broker, so it needs no other thread.
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            self._raise(error.args[0], "begin_transaction")

    def _abort(self) -> None:
        deadline = time.monotonic() + ABORT_TIMEOUT_S
        try:
            self._call(
                "abort_transaction",
                lambda: self._producer.abort_transaction(CALL_TIMEOUT_S),
                lambda: time.monotonic() > deadline,
            )
        except PublishAbortedError as error:
            raise ClientsLostError(f"a transaction could not be aborted: {error}") from error

    def _call(self, name: str, call: Callable[[], Any], over: Callable[[], bool] = lambda: False) -> None:
        while True:
            try:
                self._caller.call(call, CALL_TIMEOUT_S + HANG_MARGIN_S)
            except KafkaException as error:
                problem = error.args[0]
                if (
                    problem.retriable()
                    and not problem.txn_requires_abort()
                    and not (self._give_up() or over())
                ):
                    log.warning("%s is tried again: %s", name, problem)
                    self._health.down("kafka", f"{name}: {problem.str()}")
                    self._health.beat()
                    time.sleep(0.1)
                    continue
                self._raise(problem, name)
            except TimeoutError:
                # Given up with the thread in it; the producer that comes next fences it.
                self._hung = True
                raise ClientsLostError(f"{name} did not return") from None
            else:
                self._health.up("kafka")
                return

    def _raise(self, problem: KafkaError, name: str) -> None:
        message = f"{name}: {problem.name()}: {problem.str()}"
        if problem.code() in _FENCED:
            raise FencedError(message)
        if problem.code() == _FORGOTTEN:
            raise ClientsLostError(message)
        if problem.txn_requires_abort():
            raise PublishAbortedError(message)
        raise ClientsLostError(message)


def _membership(consumer: Consumer) -> Any:
    """What proves to the broker that the consumer is a member; fresh, at send time, so that whoever was
    replaced meanwhile is refused.

    A consumer that has lost its membership and has not been told yet proves nothing, and a broker takes
    that as a tool's commit while the group is empty: one that was frozen, whose successor has come and
    gone, could put an old checkpoint over a new one.

    Raises:
        PublishAbortedError: it is no member now.
    """
    before = consumer.memberid()
    proof = consumer.consumer_group_metadata()
    if not before or consumer.memberid() != before:
        raise PublishAbortedError("this consumer is not in the group now")
    return proof


class PlainPublisher:
    """at_least_once: results are acknowledged by all replicas, then the checkpoint is committed.

    For brokers without transactions. A death between the two publishes a result again.
    """

    def __init__(
        self, settings: KafkaSettings, consumer: Consumer, give_up: Callable[[], bool], health: Health
    ) -> None:
        self._consumer = consumer
        self._give_up = give_up
        self._health = health
        self._producer = Producer({**producer_config(settings), "linger.ms": 0})

    def start(self) -> None:
        """There is nothing to take."""

    def publish(self, records: Sequence[Outgoing], offsets: list[TopicPartition]) -> None:
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Any) -> None:
            if error is not None:
                failures.append(error)

        for record in records:
            self._produce(record, delivered)
        while (waiting := self._producer.flush(CALL_TIMEOUT_S)) and not self._give_up():
            self._health.down("kafka", f"{waiting} results are not acknowledged")
            self._health.beat()
        refused = [failure.str() for failure in failures if failure.code() in _REFUSED]
        if refused:
            raise RefusedRecordError(refused[0])
        if failures or len(self._producer):
            reason = failures[0].str() if failures else "the brokers do not answer"
            raise ClientsLostError(f"results were not acknowledged: {reason}")
        self.commit(offsets)

    def commit(self, offsets: list[TopicPartition]) -> None:
        commit(self._consumer, offsets, self._health)

    def close(self) -> None:
        self._producer.purge()

    def _produce(self, record: Outgoing, delivered: Callable[..., None]) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=_sendable(record),
                    on_delivery=delivered,
                )
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                raise RefusedRecordError(error.args[0].str()) from error
            else:
                return


_DEFINITE = frozenset(
    (
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._ASSIGNMENT_LOST,
    )
)


def commit(consumer: Consumer, offsets: list[TopicPartition], health: Health) -> None:
    """Commit checkpoints outside a transaction, and wait for the answer.

    Never between begin and end of a transaction: it would silently beat the transaction's offsets.

    Raises:
        CommitRefusedError: it did not happen.
        ClientsLostError: it may have happened, or may happen yet. Only clients with a new member id
            are safe from a late one overwriting what they commit.
    """
    try:
        _membership(consumer)
    except PublishAbortedError as error:
        raise CommitRefusedError(str(error)) from error
    try:
        with health.waiting("kafka", "a commit"):
            answers = consumer.commit(offsets=offsets, asynchronous=False) or []
        problems = [answer.error for answer in answers if answer.error is not None]
    except KafkaException as error:
        problems = [error.args[0]]
    for problem in problems:
        message = f"commit: {problem.name()}: {problem.str()}"
        if problem.code() in _DEFINITE:
            raise CommitRefusedError(message)
        raise ClientsLostError(message)


def _sendable(record: Outgoing) -> list[tuple[str, str | bytes | None]]:
    return [(name, value) for name, value in record.headers]
