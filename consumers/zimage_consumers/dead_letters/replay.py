"""Sending dead letters again, each at most once unless asked for: the replay and the note of it are
one transaction."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer

from zimage_consumers.dead_letters.letter import DeadLetter, Place
from zimage_stream.errors import ZImageError
from zimage_stream.events.headers import replay_headers
from zimage_stream.kafka.clients import (
    Trouble,
    metadata_of,
    producer_config,
    transactional_config,
    transactional_id,
)
from zimage_stream.kafka.partitions import walk
from zimage_stream.kafka.reader import TopicMissingError, TopicReader
from zimage_stream.kafka.topics import make_topics, replayed_topic, topic_exists
from zimage_stream.settings import Settings

AT_A_TIME = 200
"""Letters in one transaction."""
_TIMEOUT_S = 30.0
_POLL_S = 0.2


class ReplayError(ZImageError):
    """The brokers did not take a replay. What was not taken can be replayed again."""


@dataclass(frozen=True, slots=True)
class Replay:
    """A dead letter and the value to send for it."""

    letter: DeadLetter
    value: bytes | None


def read_replayed(settings: Settings) -> set[Place]:
    """Which dead letters were replayed before; none where nothing ever was.

    Raises:
        BrokerUnavailableError: no broker answers.
    """
    topic, places = replayed_topic(settings.topics).name, set[Place]()
    if not topic_exists(settings.kafka, topic):
        return places
    with TopicReader(settings.kafka, topic) as reader:
        reader.start()
        while not reader.caught_up:
            message = reader.poll(_POLL_S)
            if message is not None:
                key = message.key()
                places.add(Place.parse(key.decode() if isinstance(key, bytes) else str(key)))
            elif reader.trouble is not None:
                raise reader.trouble
    return places


class Replayer:
    """Replays, and remembers it. A context manager.

    Only one can be at work: a later one ends it. So no letter is replayed twice because two people
    had the same thought.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: there is no requests topic.
        TopicError: the topic of notes is not there and cannot be made.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trouble = Trouble(settings.kafka)
        make_topics(settings.kafka, [replayed_topic(settings.topics)])
        self._transactional = settings.worker.guarantee == "exactly_once"
        config = producer_config(settings.kafka)
        if self._transactional:
            name = transactional_id(settings.kafka, settings.worker.group_id, "dead-letters", "replay")
            config = transactional_config(settings.kafka, name)
        self._producer = Producer({**config, "error_cb": self._trouble})
        topic = settings.topics.requests
        found = metadata_of(self._producer, self._trouble, topic).topics[topic]
        if found.error is not None:
            raise TopicMissingError(topic, found.error.str())
        count = len(found.partitions)
        self._walk: Iterator[int] = walk(count, secrets.randbelow(count))
        if self._transactional:
            self._call(lambda: self._producer.init_transactions(_TIMEOUT_S))
        # Only now: whoever was at work before us has ended or is fenced.
        self.replayed = read_replayed(settings)
        """Which were replayed before, this replayer's own among them."""

    def __enter__(self) -> Replayer:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.purge()

    def send(self, replays: Sequence[Replay]) -> None:
        """Send them, all or (where there are transactions) none.

        Raises:
            ReplayError: they are not sent.
        """
        for start in range(0, len(replays), AT_A_TIME):
            self._send(replays[start : start + AT_A_TIME])

    def _send(self, replays: Sequence[Replay]) -> None:
        if self._transactional:
            self._call(self._producer.begin_transaction)
        failures: list[KafkaError] = []
        for replay in replays:
            self._produce(replay, failures)
        if not self._transactional:
            self._flush(failures)
        for replay in replays:
            self._note(replay.letter.place, failures)
        if self._transactional:
            self._call(lambda: self._producer.commit_transaction(_TIMEOUT_S))
        else:
            self._flush(failures)
        self.replayed.update(replay.letter.place for replay in replays)

    def _produce(self, replay: Replay, failures: list[KafkaError]) -> None:
        letter = replay.letter
        headers = replay_headers(
            letter.headers,
            topic=self._settings.topics.dead_letters,
            partition=letter.place.partition,
            offset=letter.place.offset,
        )

        def produce() -> None:
            self._producer.produce(
                self._settings.topics.requests,
                key=letter.key,
                value=replay.value,
                headers=[(name, value) for name, value in headers],
                partition=next(self._walk),
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )

        self._call(produce)

    def _note(self, place: Place, failures: list[KafkaError]) -> None:
        self._call(
            lambda: self._producer.produce(
                replayed_topic(self._settings.topics).name,
                key=str(place).encode(),
                value=b"replayed",
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        )

    def _flush(self, failures: list[KafkaError]) -> None:
        left = self._producer.flush(_TIMEOUT_S)
        if failures or left:
            raise ReplayError(failures[0].str() if failures else "no broker acknowledged the replay in time")

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except KafkaException as error:
            problem = error.args[0]
            if problem.code() == KafkaError._FATAL or problem.fatal():
                raise ReplayError(f"somebody else replays dead letters now ({problem.str()})") from error
            trouble = self._trouble.error
            if trouble is not None:
                raise trouble from error
            raise ReplayError(f"the brokers did not take the replay: {problem.str()}") from error
