"""Both delivery guarantees behind one interface, on a real broker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, TopicPartition

from tests.services.addresses import KafkaAddress
from zimage_consumers.image_worker.group.publish import (
    CommitRefusedError,
    OutgoingRecord,
    PlainPublisher,
    PublishAbortedError,
    Publisher,
    RefusedRecordError,
    TransactionalPublisher,
)
from zimage_stream.kafka.clients import reader_config, worker_consumer_config
from zimage_stream.settings import TopicSettings
from zimage_stream.telemetry.health import Health

MakePublisher = Callable[[Consumer], Publisher]


@pytest.fixture
def consumer(kafka: KafkaAddress, topics: TopicSettings) -> Iterator[Consumer]:
    """A consumer with a group of its own, which it has not joined."""
    consumer = Consumer(worker_consumer_config(kafka.settings, topics.requests, "slot"))
    yield consumer
    consumer.close()


@pytest.fixture(params=["exactly_once", "at_least_once"])
def publisher(
    request: pytest.FixtureRequest, kafka: KafkaAddress, topics: TopicSettings, consumer: Consumer
) -> Iterator[Publisher]:
    made: Publisher
    if request.param == "exactly_once":
        made = TransactionalPublisher(
            kafka.settings, topics.requests, topics.requests, consumer, lambda: False, Health()
        )
    else:
        made = PlainPublisher(kafka.settings, consumer, lambda: False, Health())
    made.start()
    yield made
    made.close()


def committed(consumer: Consumer, topics: TopicSettings) -> tuple[int, str | None]:
    (found,) = consumer.committed([TopicPartition(topics.requests, 0)], timeout=120)
    return found.offset, found.metadata


def join(consumer: Consumer, topics: TopicSettings) -> None:
    consumer.subscribe([topics.requests])
    deadline = time.monotonic() + 120
    while not consumer.assignment():
        assert time.monotonic() < deadline
        consumer.poll(0.1)


def test_a_commit_is_read_back(publisher: Publisher, consumer: Consumer, topics: TopicSettings) -> None:
    join(consumer, topics)
    publisher.commit([TopicPartition(topics.requests, 0, 5, "checkpoint")])
    assert committed(consumer, topics) == (5, "checkpoint")
    result = OutgoingRecord(topics.results, b"key", b"value", [])
    publisher.publish([result], [TopicPartition(topics.requests, 0, 6, "next")])
    assert committed(consumer, topics) == (6, "next")


def test_a_consumer_outside_the_group_commits_nothing(
    publisher: Publisher, consumer: Consumer, topics: TopicSettings
) -> None:
    # The group is empty, and a broker would accept this from any client.
    with pytest.raises(CommitRefusedError, match="not in the group"):
        publisher.commit([TopicPartition(topics.requests, 0, 5, "checkpoint")])
    result = OutgoingRecord(topics.results, b"key", b"value", [])
    with pytest.raises((PublishAbortedError, CommitRefusedError)):
        publisher.publish([result], [TopicPartition(topics.requests, 0, 5, "checkpoint")])
    assert committed(consumer, topics)[0] == OFFSET_INVALID


def test_nothing_of_an_abandoned_publication_is_visible(
    kafka: KafkaAddress, consumer: Consumer, topics: TopicSettings
) -> None:
    publisher = TransactionalPublisher(
        kafka.settings, topics.requests, topics.requests, consumer, lambda: False, Health()
    )
    publisher.start()
    join(consumer, topics)
    records = [
        OutgoingRecord(topics.dead_letters, b"key", b"dead", []),
        OutgoingRecord(topics.results, b"key", b"value", []),
        OutgoingRecord(topics.requests, b"key", os.urandom(3 << 20), []),
    ]
    with pytest.raises(RefusedRecordError):
        publisher.publish(records, [TopicPartition(topics.requests, 0, 5, "never")])
    publisher.close()
    for topic in (topics.dead_letters, topics.results):
        reader = Consumer(reader_config(kafka.settings))
        reader.assign([TopicPartition(topic, number, 0) for number in (0, 1, 2)])
        seen = [message for _ in range(10) if (message := reader.poll(0.2)) is not None]
        reader.close()
        assert [message.value() for message in seen if message.error() is None] == []


def test_a_refused_record_is_reported_and_the_next_publication_succeeds(
    publisher: Publisher, consumer: Consumer, topics: TopicSettings
) -> None:
    join(consumer, topics)
    # Within the client's own limit, but above that of the requests topic.
    large = OutgoingRecord(topics.requests, b"key", os.urandom(3 << 20), [])
    with pytest.raises(RefusedRecordError):
        publisher.publish([large], [TopicPartition(topics.requests, 0, 5, "never")])
    assert committed(consumer, topics)[0] == OFFSET_INVALID
    small = OutgoingRecord(topics.results, b"key", b"value", [])
    publisher.publish([small], [TopicPartition(topics.requests, 0, 6, "next")])
    assert committed(consumer, topics) == (6, "next")
