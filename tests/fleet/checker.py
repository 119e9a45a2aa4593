"""Judges a run from outside: reads the topics and the store with the public libraries alone.

It imports nothing of the product, and believes neither its logs nor its metrics.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import Consumer, TopicPartition
from minio import Minio

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "zimage.ImageResult.v1.avsc").read_text())
SINGLE_OBJECT_HEADER = 10

Place = tuple[int, int]
"""Partition and offset of a request's record."""


@dataclass(frozen=True)
class Report:
    """What the topics and the store hold.

    Attributes:
        results: by the request's place, in order of arrival; more than one is a duplicate.
        dead: headers of the dead letters by the place they name.
        mismatched: uris of objects that are not what their result states.
    """

    results: dict[Place, list[dict[str, Any]]]
    dead: dict[Place, list[dict[str, str]]]
    mismatched: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> list[Place]:
        return [place for place, found in self.results.items() if len(found) > 1]

    def missing(self, accepted: set[Place]) -> set[Place]:
        """Accepted records without a terminal event."""
        return accepted - self.results.keys() - self.dead.keys()

    def foreign(self, accepted: set[Place]) -> set[Place]:
        """Terminal events of records that nobody sent."""
        return (self.results.keys() | self.dead.keys()) - accepted

    def statuses(self) -> Counter[str]:
        return Counter(result["status"] for found in self.results.values() for result in found)

    def by_request(self) -> dict[str, dict[str, Any]]:
        return {found[0]["request_id"]: found[0] for found in self.results.values()}


def check(kafka: dict[str, Any], results_topic: str, dead_letters_topic: str, store: Minio | None) -> Report:
    """Read both topics to their ends, read_committed, and every object that a result names.

    Args:
        kafka: librdkafka settings that reach the brokers.
    """
    results: dict[Place, list[dict[str, Any]]] = defaultdict(list)
    for value, _ in _read(kafka, results_topic):
        result = fastavro.schemaless_reader(io.BytesIO(value[SINGLE_OBJECT_HEADER:]), SCHEMA, None)
        assert isinstance(result, dict)
        results[result["source"]["partition"], result["source"]["offset"]].append(result)
    dead: dict[Place, list[dict[str, str]]] = defaultdict(list)
    for _, headers in _read(kafka, dead_letters_topic):
        place = int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"])
        dead[place].append(headers)
    report = Report(dict(results), dict(dead))
    if store is not None:
        for found in results.values():
            report.mismatched.extend(result["image"]["uri"] for result in found if not _true(result, store))
    return report


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


def _read(kafka: dict[str, Any], topic: str) -> list[tuple[bytes, dict[str, str]]]:
    consumer = Consumer(
        {**kafka, "group.id": "checker", "enable.auto.commit": False, "isolation.level": "read_committed",
         "enable.partition.eof": True}
    )  # fmt: skip
    out: list[tuple[bytes, dict[str, str]]] = []
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended: set[int] = set()
        deadline = time.monotonic() + 60
        while len(ended) < len(partitions):
            assert time.monotonic() < deadline, f"{topic} cannot be read to its end"
            message = consumer.poll(0.5)
            if message is None:
                continue
            number = message.partition()
            assert number is not None
            if message.error() is not None:
                ended.add(number)
                continue
            sent: Any = message.headers() or ()
            headers = {name: raw.decode(errors="replace") for name, raw in sent if isinstance(raw, bytes)}
            value = message.value()
            out.append((value if isinstance(value, bytes) else b"", headers))
    finally:
        consumer.close()
    return out
