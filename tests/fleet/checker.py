"""Judges a run from outside: reads the topics and the store with public libraries alone.

It imports nothing of the product, and trusts neither its logs nor its metrics.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, Message, TopicPartition
from minio import Minio

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "zimage.ImageResult.v1.avsc").read_text())
SINGLE_OBJECT_HEADER = 10

LetterPosition = tuple[int, int]
"""Partition and offset of a request's record."""


@dataclass(frozen=True)
class Report:
    """The contents of the topics and the store.

    Attributes:
        results: by position of the request, in order of arrival; more than one is a duplicate.
        dead: headers of the dead letters, by the position they name.
        mismatched: uris of objects that differ from what their result states.
    """

    results: dict[LetterPosition, list[dict[str, Any]]]
    dead: dict[LetterPosition, list[dict[str, str]]]
    mismatched: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> list[LetterPosition]:
        return [place for place, found in self.results.items() if len(found) > 1]

    def missing(self, accepted: set[LetterPosition]) -> set[LetterPosition]:
        """Accepted records without a terminal event."""
        return accepted - self.results.keys() - self.dead.keys()

    def foreign(self, accepted: set[LetterPosition]) -> set[LetterPosition]:
        """Terminal events of records that were never sent."""
        return (self.results.keys() | self.dead.keys()) - accepted

    def statuses(self) -> Counter[str]:
        return Counter(result["status"] for found in self.results.values() for result in found)

    def by_request(self) -> dict[str, dict[str, Any]]:
        return {found[0]["request_id"]: found[0] for found in self.results.values()}


class Watcher:
    """Follows terminal events, reading each once, for tests that wait for many. It may be a moment behind,
    and judges nothing."""

    def __init__(self, kafka: dict[str, Any], results_topic: str, dead_letters_topic: str) -> None:
        self._seen: set[LetterPosition] = set()
        self._dead_letters_topic = dead_letters_topic
        self._consumer = _reader(kafka)
        self._consumer.assign(
            [
                TopicPartition(topic, number, 0)
                for topic in (results_topic, dead_letters_topic)
                for number in self._consumer.list_topics(topic, timeout=120).topics[topic].partitions
            ]
        )

    def seen(self) -> Set[LetterPosition]:
        """Positions of the records whose terminal events it has seen so far."""
        for message in self._consumer.consume(1_000, 0.1):
            if message.error() is None:
                dead = message.topic() == self._dead_letters_topic
                self._seen.add(_place(_headers(message)) if dead else _place_of(_result(message)))
        return self._seen

    def close(self) -> None:
        self._consumer.close()


def check(kafka: dict[str, Any], results_topic: str, dead_letters_topic: str, store: Minio | None) -> Report:
    """Read both topics to their ends, read_committed, and every object that a result names.

    Args:
        kafka: librdkafka settings to connect to the brokers.
    """
    results: dict[LetterPosition, list[dict[str, Any]]] = defaultdict(list)
    for message in _read(kafka, results_topic):
        result = _result(message)
        results[_place_of(result)].append(result)
    dead: dict[LetterPosition, list[dict[str, str]]] = defaultdict(list)
    for message in _read(kafka, dead_letters_topic):
        headers = _headers(message)
        dead[_place(headers)].append(headers)
    report = Report(dict(results), dict(dead))
    if store is not None:
        for found in results.values():
            report.mismatched.extend(result["image"]["uri"] for result in found if not _true(result, store))
    return report


def position_of(
    kafka: dict[str, Any], acknowledged: Message, taken: Container[LetterPosition] = ()
) -> LetterPosition:
    """The position of a record that the brokers have acknowledged.

    The acknowledgement has no offset if they had stored the record at an earlier attempt whose response was
    lost. The record is then looked for in the topic.

    Args:
        kafka: as for :func:`check`.
        taken: positions of other records.
    """
    topic, partition, offset = acknowledged.topic(), acknowledged.partition(), acknowledged.offset()
    assert topic is not None
    assert partition is not None
    if offset is not None and offset >= 0:
        return partition, offset
    sent = partition, acknowledged.key(), acknowledged.value()
    return _find(kafka, topic, lambda found: (found.partition(), found.key(), found.value()) == sent, taken)


def position_of_key(kafka: dict[str, Any], topic: str, key: bytes) -> LetterPosition:
    """The position of the first record with this key; arguments as for :func:`check`."""
    return _find(kafka, topic, lambda found: found.key() == key)


def _find(
    kafka: dict[str, Any],
    topic: str,
    wanted: Callable[[Message], bool],
    taken: Container[LetterPosition] = (),
) -> LetterPosition:
    for message in filter(wanted, _read(kafka, topic)):
        place = message.partition() or 0, message.offset() or 0
        if place not in taken:
            return place
    raise AssertionError(f"the record is not in {topic}")


def _true(result: dict[str, Any], store: Minio) -> bool:
    image = result["image"]
    if image is None:
        return True
    response = store.get_object(image["bucket"], image["key"])
    try:
        data = response.read()
    finally:
        response.close()
        response.release_conn()
    stated: tuple[int, str] = image["size_bytes"], image["sha256"]
    return (len(data), hashlib.sha256(data).hexdigest()) == stated


def _reader(kafka: dict[str, Any]) -> Consumer:
    return Consumer(
        {**kafka, "group.id": "checker", "enable.auto.commit": False, "isolation.level": "read_committed",
         "enable.partition.eof": True}
    )  # fmt: skip


def _result(message: Message) -> dict[str, Any]:
    value = message.value()
    assert isinstance(value, bytes)
    result = fastavro.schemaless_reader(io.BytesIO(value[SINGLE_OBJECT_HEADER:]), SCHEMA, None)
    assert isinstance(result, dict)
    return result


def _place_of(result: dict[str, Any]) -> LetterPosition:
    return result["source"]["partition"], result["source"]["offset"]


def _headers(message: Message) -> dict[str, str]:
    sent: Any = message.headers() or ()
    return {name: raw.decode(errors="replace") for name, raw in sent if isinstance(raw, bytes)}


def _place(headers: dict[str, str]) -> LetterPosition:
    """The position that a dead letter names."""
    return int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"])


def _read(kafka: dict[str, Any], topic: str) -> list[Message]:
    """All records in the topic."""
    consumer = _reader(kafka)
    out: list[Message] = []
    try:
        partitions = consumer.list_topics(topic, timeout=120).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended: set[int] = set()
        deadline = time.monotonic() + 240
        while len(ended) < len(partitions):
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            message = consumer.poll(0.5)
            if message is None:
                continue
            number = message.partition()
            assert number is not None
            if message.error() is not None:
                ended.add(number)
            else:
                out.append(message)
    finally:
        consumer.close()
    return out
