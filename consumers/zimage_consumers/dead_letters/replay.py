"""Replays dead letters, each at most once unless requested otherwise: a replay and its note are one
transaction."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from confluent_kafka import KafkaError, KafkaException, Producer

from zimage_consumers.dead_letters.letter import DeadLetter
from zimage_consumers.dead_letters.notes import ReplayNote, ReplayNotes, key_of, read_notes, value_of
from zimage_stream.errors import ZImageError
from zimage_stream.events.headers import replay_headers
from zimage_stream.kafka.clients import (
    ConnectionStatus,
    partitions_of,
    producer_config,
    transactional_config,
    transactional_id,
)
from zimage_stream.kafka.partitions import walk
from zimage_stream.kafka.topics import make_topics, replayed_topic
from zimage_stream.settings import Settings

MAX_LETTERS_PER_TRANSACTION = 200
"""Letters in one transaction."""
_TIMEOUT_S = 30.0
_REFUSED = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_RECORD)
"""Errors for a record that no broker will accept, however often it is sent."""


class ReplayError(ZImageError):
    """The brokers did not accept a replay. Whatever was not accepted can be replayed again."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter and the value to send for it."""

    letter: DeadLetter
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A replay that no broker will accept, and why."""

    replay: Replay
    reason: str


@dataclass(slots=True)
class _DeliveryReports:
    """Delivery reports of replays that were sent together, by their index."""

    delivered: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    failed: list[KafkaError] = field(default_factory=list)

    def note(self, number: int, problem: KafkaError | None) -> None:
        if problem is None:
            self.delivered.add(number)
        elif problem.code() in _REFUSED:
            self.refused[number] = problem.str()
        else:
            self.failed.append(problem)


class Replayer:
    """Replays dead letters and records it in notes. A context manager.

    Only one replayer can be at work: a later one fences it. So no letter is replayed twice because two people
    had the same idea.

    Raises:
        BrokerUnavailableError: no broker responds.
        TopicMissingError: the requests topic does not exist.
        TopicError: the topic of notes does not exist and cannot be created.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = ConnectionStatus(settings.kafka)
        make_topics(settings.kafka, [replayed_topic(settings.topics)])
        self._transactional = settings.worker.guarantee == "exactly_once"
        self._producer = self._new_producer()
        count = len(partitions_of(self._producer, self._connection, settings.topics.requests))
        self._walk: Iterator[int] = walk(count, secrets.randbelow(count))
        self.replayed = self._take_over()
        """Notes of what was replayed before, by this replayer or earlier ones."""

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.purge()

    def send(self, replays: Sequence[Replay]) -> list[Refusal]:
        """Send replays, each with its note. Returns those that no broker will accept; the others are sent.

        Raises:
            ReplayError: not all of them are sent.
        """
        refusals = []
        for start in range(0, len(replays), MAX_LETTERS_PER_TRANSACTION):
            waiting = list(replays[start : start + MAX_LETTERS_PER_TRANSACTION])
            while waiting:
                refused = self._send(waiting)
                refusals += [Refusal(waiting[number], reason) for number, reason in refused.items()]
                if not refused:
                    break
                self._renew()
                # In a transaction nothing else was sent either, and only a few are refused at a time.
                left = [replay for number, replay in enumerate(waiting) if number not in refused]
                waiting = left if self._transactional else []
        return refusals

    def _new_producer(self) -> Producer:
        kafka = self._settings.kafka
        config = producer_config(kafka)
        if self._transactional:
            name = transactional_id(kafka, self._settings.worker.group_id, "dead-letters", "replay")
            config = transactional_config(kafka, name)
        # One record that is too large would have all records in its batch refused.
        return Producer({**config, "batch.num.messages": 1, "error_cb": self._connection})

    def _take_over(self) -> ReplayNotes:
        """Fence other replayers, then read what was replayed up to now."""
        if self._transactional:
            self._call(lambda: self._producer.init_transactions(_TIMEOUT_S))
        # Only now: any replayer at work before us has ended or is fenced.
        return read_notes(self._settings)

    def _renew(self) -> None:
        """Replace the producer. Once one of its records was refused, what it sends to the same partition is
        out of sequence for the broker, and times out."""
        self._producer.purge()
        self._producer = self._new_producer()
        notes = self._take_over()
        if notes != self.replayed:
            raise ReplayError("another process has replayed dead letters meanwhile; run it again")

    def _send(self, group: Sequence[Replay]) -> dict[int, str]:
        """Send these replays together. In a transaction all are sent, or none if one is refused; otherwise
        all are sent that are not refused. Returns the refused ones, by index, with the reason."""
        if not self._transactional:
            outcome = self._produce_all(group)
            self._note([group[number].letter for number in outcome.delivered])
            self._raise_unless_settled(outcome, len(group))
            return outcome.refused
        self._call(self._producer.begin_transaction)
        try:
            outcome = self._produce_all(group)
            if outcome.refused:
                self._call(lambda: self._producer.abort_transaction(_TIMEOUT_S))
                return outcome.refused
            self._raise_unless_settled(outcome, len(group))
            self._note([replay.letter for replay in group])
        except ZImageError:
            # Left open, it would hold up the workers and the next replay.
            with suppress(KafkaException):
                self._producer.abort_transaction(_TIMEOUT_S)
            raise
        return {}

    def _produce_all(self, group: Sequence[Replay]) -> _DeliveryReports:
        outcome = _DeliveryReports()
        for number, replay in enumerate(group):
            try:
                self._produce(replay, number, outcome)
            except KafkaException as error:
                outcome.note(number, error.args[0])
                if outcome.failed:
                    break
        self._producer.flush(_TIMEOUT_S)
        return outcome

    def _produce(self, replay: Replay, number: int, outcome: _DeliveryReports) -> None:
        letter = replay.letter
        headers = replay_headers(
            letter.headers,
            topic=self._settings.topics.dead_letters,
            partition=letter.place.partition,
            offset=letter.place.offset,
        )
        self._producer.produce(
            self._settings.topics.requests,
            key=letter.key,
            value=replay.value,
            headers=[(name, value) for name, value in headers],
            partition=next(self._walk),
            on_delivery=lambda error, _: outcome.note(number, error),
        )

    def _note(self, letters: Sequence[DeadLetter]) -> None:
        """Write the notes of sent replays; commits the transaction, if there is one."""
        outcome, topic = _DeliveryReports(), replayed_topic(self._settings.topics).name
        for number, letter in enumerate(letters):

            def produce(number: int = number, letter: DeadLetter = letter) -> None:
                self._producer.produce(
                    topic,
                    key=key_of(letter),
                    value=value_of(letter),
                    on_delivery=lambda error, _: outcome.note(number, error),
                )

            self._call(produce)
        if self._transactional:
            self._call(lambda: self._producer.commit_transaction(_TIMEOUT_S))
        self._producer.flush(_TIMEOUT_S)
        self._raise_unless_settled(outcome, len(letters))
        for letter in letters:
            self.replayed.add(letter.place, ReplayNote(datetime.now(UTC), letter.fingerprint))

    def _raise_unless_settled(self, outcome: _DeliveryReports, count: int) -> None:
        if outcome.failed:
            raise self._error(outcome.failed[0])
        if len(outcome.delivered) + len(outcome.refused) < count:
            raise ReplayError("no broker acknowledged the replay in time")

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except KafkaException as error:
            raise self._error(error.args[0]) from error

    def _error(self, problem: KafkaError) -> ZImageError:
        if problem.code() == KafkaError._FATAL or problem.fatal():
            return ReplayError(f"another process is replaying dead letters now ({problem.str()})")
        return self._connection.error or ReplayError(
            f"the brokers did not accept the replay: {problem.str()}"
        )
