"""Publishing terminal events together with checkpoints: both delivery guarantees behind one interface."""

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
from zimage_stream.kafka.clients import producer_config, transactional_config, transactional_id
from zimage_stream.settings import KafkaSettings, Settings
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 5.0
"""Timeout of one call, in seconds. Calls are repeated after it; it bounds how soon an outage shows."""
HANG_MARGIN_S = 5.0
ABORT_TIMEOUT_S = 8.0
"""Bound on repeated aborts, in seconds. An abort may keep timing out; the next producer's start ends the
transaction just as well."""
_FENCED = frozenset(
    (
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        90,  # PRODUCER_FENCED, which has no name in the Python client
    )
)
_FORGOTTEN = KafkaError.INVALID_PRODUCER_ID_MAPPING
"""The broker has expired our transactional id, after days without a transaction. librdkafka allows an abort
but requests no new id where a transaction begins with offsets, so it would be refused forever."""

_REFUSED = frozenset(
    (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD)
)
"""Broker errors for a record that will never be accepted."""


@dataclass(frozen=True, slots=True)
class OutgoingRecord:
    """One record to produce."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def size(self) -> int:
        """Upper bound on the bytes it takes in a batch."""
        return len(self.key or b"") + len(self.value or b"") + size_of(self.headers)


class PublishAbortedError(ZImageError):
    """Nothing of this publication was written; publish again what still belongs to this worker."""


class CommitRefusedError(ZImageError):
    """The group definitely refused the commit: nothing is committed. The next poll reports what changed."""


class ClientsLostError(ZImageError):
    """The state of the clients is unknown: both are discarded and the group is joined again."""


class FencedError(ClientsLostError):
    """Another producer uses our transactional id, or the broker timed out our transaction."""


class RefusedRecordError(ZImageError):
    """Nothing of this publication was written, and one of its records never will be; if there are several,
    the brokers do not say which."""


class Publisher(Protocol):
    """Publishes records and commits checkpoints for one session. Kafka thread only."""

    def start(self) -> None:
        """Get ready to publish. Raises ClientsLostError."""
        ...

    def publish(self, records: Sequence[OutgoingRecord], offsets: list[TopicPartition]) -> None:
        """Produce the records and commit the checkpoints that count them as done.

        Raises:
            PublishAbortedError: nothing happened; poll, then retry what still belongs to this worker.
            RefusedRecordError: nothing happened, because of one of the records.
            ClientsLostError: it may or may not have happened; the committed checkpoint tells.
        """
        ...

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Commit checkpoints that resolve no further offset: claims, marks, releases.

        Raises:
            CommitRefusedError: nothing was committed.
            ClientsLostError: the commit may have happened; the committed checkpoint tells.
        """
        ...

    def close(self) -> None:
        """Release the producer."""
        ...


class TransactionalPublisher:
    """The exactly_once publisher. Transactions are opened late, so that each lasts only milliseconds.

    Args:
        topic: the requests topic, whose offsets are committed.
        give_up: polled between calls while the brokers do not respond; ``True`` ends the wait.
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
        """Acquire the transactional id, fencing its previous owner and ending that owner's open transaction.

        An empty transaction over the group's offsets is then aborted. A predecessor's offsets can reach the
        group coordinator after its transaction has ended, for instance when the broker restarts in between.
        Nothing would ever resolve them, and ``committed()``, which waits for stable offsets, would time out
        forever. The abort's marker clears whatever this id has left pending.
        """
        self._call("init_transactions", lambda: self._producer.init_transactions(CALL_TIMEOUT_S))
        nothing = [TopicPartition(self._topic, 0, 0)]
        group = self._consumer.consumer_group_metadata()
        self._begin()
        # Refused, since we are no member yet; the offsets topic joins the transaction all the same.
        with suppress(PublishAbortedError):
            self._call(
                "send_offsets_to_transaction",
                lambda: self._producer.send_offsets_to_transaction(nothing, group, CALL_TIMEOUT_S),
            )
        self._abort()

    def publish(self, records: Sequence[OutgoingRecord], offsets: list[TopicPartition]) -> None:
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
            refusal = self._reported_refusal()
            if refusal is not None:
                self._renew()
                raise RefusedRecordError(refusal) from error
            raise

    def commit(self, offsets: list[TopicPartition]) -> None:
        """Commit in a transaction, although a lone commit needs none, to use the producer's connection.

        A commit through the consumer waits behind its JoinGroup, which the broker answers only when the last
        member has joined. While the group waits for a dead member no mark could be committed, and all
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

    def _reported_refusal(self) -> str | None:
        """Why the brokers will never accept one of the records, as far as delivery reports have arrived."""
        return self._refused

    def _renew(self) -> None:
        """Replace a producer that has sent the refused record. With librdkafka 2.16, whatever such a producer
        sends to that partition next may never be acknowledged."""
        self._producer.purge()
        self._producer = Producer(self._config)
        self._call("init_transactions", lambda: self._producer.init_transactions(CALL_TIMEOUT_S))

    def _note_delivery(self, problem: KafkaError | None, _: Any) -> None:
        if problem is not None and problem.code() in _REFUSED:
            self._refused = problem.str()

    def _produce(self, record: OutgoingRecord) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=_header_pairs(record),
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
        # Contacts no broker, so it needs no separate thread.
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
                    log.warning("retrying %s: %s", name, problem)
                    self._health.down("kafka", f"{name}: {problem.str()}")
                    self._health.beat()
                    time.sleep(0.1)
                    continue
                self._raise(problem, name)
            except TimeoutError:
                # Abandoned together with its thread; the next producer fences this one.
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
    """The consumer's group metadata, which proves its membership to the broker. Fetched when it is sent, so
    that a member replaced in the meantime is refused.

    A consumer that has lost its membership but does not know it yet has no proof, and while the group is
    empty a broker accepts that as a tool's commit. A frozen worker whose successor has come and gone could
    then overwrite a new checkpoint with an old one.

    Raises:
        PublishAbortedError: the consumer is not a member now.
    """
    before = consumer.memberid()
    proof = consumer.consumer_group_metadata()
    if not before or consumer.memberid() != before:
        raise PublishAbortedError("this consumer is not in the group now")
    return proof


class PlainPublisher:
    """The at_least_once publisher: all replicas acknowledge the results, then the checkpoint is committed.

    For brokers without transactions. If the process dies between the two, a result is published again.
    """

    def __init__(
        self, settings: KafkaSettings, consumer: Consumer, give_up: Callable[[], bool], health: Health
    ) -> None:
        self._consumer = consumer
        self._give_up = give_up
        self._health = health
        self._producer = Producer({**producer_config(settings), "linger.ms": 0})

    def start(self) -> None:
        """Do nothing: there is no transactional id to acquire."""

    def publish(self, records: Sequence[OutgoingRecord], offsets: list[TopicPartition]) -> None:
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Any) -> None:
            if error is not None:
                failures.append(error)

        for record in records:
            self._produce(record, delivered)
        while (waiting := self._producer.flush(CALL_TIMEOUT_S)) and not self._give_up():
            self._health.down("kafka", f"{waiting} results have not been acknowledged")
            self._health.beat()
        refused = [failure.str() for failure in failures if failure.code() in _REFUSED]
        if refused:
            raise RefusedRecordError(refused[0])
        if failures or len(self._producer):
            reason = failures[0].str() if failures else "the brokers do not respond"
            raise ClientsLostError(f"results have not been acknowledged: {reason}")
        self.commit(offsets)

    def commit(self, offsets: list[TopicPartition]) -> None:
        commit(self._consumer, offsets, self._health)

    def close(self) -> None:
        self._producer.purge()

    def _produce(self, record: OutgoingRecord, delivered: Callable[..., None]) -> None:
        while True:
            try:
                self._producer.produce(
                    record.topic,
                    key=record.key,
                    value=record.value,
                    headers=_header_pairs(record),
                    on_delivery=delivered,
                )
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                raise RefusedRecordError(error.args[0].str()) from error
            else:
                return


def create_publisher(
    settings: Settings, slot: str, consumer: Consumer, give_up: Callable[[], bool], health: Health
) -> Publisher:
    """The publisher for the guarantee that the settings name.

    Args:
        give_up: polled between calls while the brokers do not respond; ``True`` ends the wait.
    """
    if settings.worker.guarantee == "exactly_once":
        name = transactional_id(settings.kafka, settings.worker.group_id, slot)
        topic = settings.topics.requests
        return TransactionalPublisher(settings.kafka, name, topic, consumer, give_up, health)
    return PlainPublisher(settings.kafka, consumer, give_up, health)


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

    Never call it inside an open transaction: it would silently override the transaction's offsets.

    Raises:
        CommitRefusedError: nothing was committed.
        ClientsLostError: the commit may have happened, or may still happen. Only clients with a new member
            id are safe from a late commit overwriting theirs.
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


def _header_pairs(record: OutgoingRecord) -> list[tuple[str, str | bytes | None]]:
    return [(name, value) for name, value in record.headers]
