"""The cluster of three brokers does what scenarios require, and identifies leaders and coordinators.

Marked slow: the scenarios that rely on it are those of ``make chaos``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence

import pytest
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.fleet.workers import until
from tests.services import KafkaCluster, ServiceError
from tests.services.native.cluster import BROKERS, TRANSACTIONS, Broker
from zimage_stream.kafka.clients import common_config, producer_config, reader_config, transactional_config

pytestmark = pytest.mark.slow

ELECTED_WITHIN_S = 60.0


@pytest.mark.parametrize(
    ("fail", "come_back"),
    [(Broker.kill, Broker.start), (Broker.pause, Broker.resume)],
)
def test_a_record_outlives_its_leader_and_the_broker_that_comes_back_catches_up(
    own_cluster: KafkaCluster, fail: Callable[[Broker], None], come_back: Callable[[Broker], None]
) -> None:
    topic = _topic(own_cluster, [BROKERS])
    assert _publish(own_cluster, topic, b"before") is None
    leader = own_cluster.leader(topic, 0)
    assert leader is not None

    fail(leader)
    until(lambda: _leader(own_cluster, topic) not in (None, leader), ELECTED_WITHIN_S, "another broker leads")
    assert _publish(own_cluster, topic, b"meanwhile") is None
    come_back(leader)
    own_cluster.wait_in_sync()

    assert own_cluster.in_sync(topic, 0) == set(BROKERS)
    assert own_cluster.end(topic, 0) == 2
    assert _values(own_cluster, topic) == [b"before", b"meanwhile"]


def test_a_single_broker_of_three_leads_but_accepts_nothing_until_another_is_back(
    own_cluster: KafkaCluster,
) -> None:
    topic = _topic(own_cluster, [BROKERS])
    left, *down = own_cluster.brokers

    for broker in down:
        broker.kill()
    until(
        lambda: own_cluster.in_sync(topic, 0) == {left.number},
        ELECTED_WITHIN_S,
        "the in-sync set shrinks to one",
    )
    assert _publish(own_cluster, topic, b"refused", timeout_ms=2_000) == KafkaError._MSG_TIMED_OUT
    assert _leader(own_cluster, topic) is left
    down[0].start()
    assert _publish(own_cluster, topic, b"taken") is None
    down[1].start()
    own_cluster.wait_in_sync()

    assert _values(own_cluster, topic)[-1] == b"taken"


def test_the_coordinator_of_a_group_is_the_one_that_kafka_names(own_cluster: KafkaCluster) -> None:
    topic = _topic(own_cluster, [BROKERS])
    groups = [f"group-{number}-é𠀋" for number in range(6)]
    for group in groups:
        consumer = Consumer({**common_config(own_cluster.settings), "group.id": group})
        consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
        consumer.close()

    admin = AdminClient(common_config(own_cluster.settings))
    described = admin.describe_consumer_groups(groups)

    named = {group: future.result(120).coordinator.id for group, future in described.items()}
    assert {group: own_cluster.group_coordinator(group) for group in groups} == {
        group: own_cluster.broker(number) for group, number in named.items()
    }


def test_the_transaction_coordinator_leads_the_partition_of_its_transactions(
    own_cluster: KafkaCluster,
) -> None:
    topic = _topic(own_cluster, [BROKERS])
    began = time.time()
    ids = {f"id-{number}-{uuid.uuid4().hex}" for number in range(4)}
    for name in ids:
        producer = Producer(transactional_config(own_cluster.settings, name))
        producer.init_transactions(120)
        producer.begin_transaction()
        producer.produce(topic, b"in a transaction")
        producer.commit_transaction(120)

    assert ids <= own_cluster.transactional_ids(began)
    kept_by = {
        bytes(message.key() or b"")[4:].decode(): own_cluster.leader(TRANSACTIONS, message.partition() or 0)
        for message in _messages(own_cluster, TRANSACTIONS)
    }
    for name in ids:
        assert own_cluster.transaction_coordinator(name) is kept_by[name]


def test_a_commit_reaches_a_partition_that_has_no_leader_when_it_is_committed(
    own_cluster: KafkaCluster,
) -> None:
    # Kafka 4.3.0, 4.3.1 and 4.4.0 fail this test (KAFKA-20734).
    name = f"id-{uuid.uuid4().hex}"
    producer = Producer(transactional_config(own_cluster.settings, name))
    producer.init_transactions(120)
    coordinator = own_cluster.transaction_coordinator(name)
    holder = next(broker for broker in own_cluster.brokers if broker is not coordinator)
    topic = _topic(own_cluster, [[holder.number]], {"min.insync.replicas": "1"})

    producer.begin_transaction()
    producer.produce(topic, b"committed")
    producer.flush(60)
    holder.kill()
    until(lambda: own_cluster.leader(topic, 0) is None, ELECTED_WITHIN_S, "the partition has no leader")
    producer.commit_transaction(120)
    holder.start()
    own_cluster.wait_in_sync()

    until(lambda: _values(own_cluster, topic) == [b"committed"], 60, "the record is committed")


def test_a_topics_replicas_are_placed_as_requested(own_cluster: KafkaCluster) -> None:
    topic = _topic(own_cluster, [[2, 1], [3, 1]])

    assert own_cluster.leader(topic, 0) is own_cluster.broker(2)
    assert own_cluster.in_sync(topic, 0) == {1, 2}
    assert own_cluster.in_sync(topic, 1) == {1, 3}
    with pytest.raises(ServiceError, match=rf"there is no {topic}\[2\]"):
        own_cluster.leader(topic, 2)


def _topic(
    cluster: KafkaCluster, copies: Sequence[Sequence[int]], config: Mapping[str, str] | None = None
) -> str:
    name = f"topic-{uuid.uuid4().hex[:12]}"
    cluster.make_topic(name, copies, config)
    cluster.wait_in_sync()
    return name


def _leader(cluster: KafkaCluster, topic: str) -> Broker | None:
    try:
        return cluster.leader(topic, 0)
    except ServiceError:
        # The client may have queried the broker that has just failed.
        return None


def _publish(cluster: KafkaCluster, topic: str, value: bytes, timeout_ms: int = 60_000) -> int | None:
    """Error code of the delivery; ``None`` if the record was accepted."""
    told: list[int | None] = []
    producer = Producer(producer_config(cluster.settings) | {"message.timeout.ms": timeout_ms})
    producer.produce(topic, value, on_delivery=lambda error, _: told.append(error.code() if error else None))
    producer.flush(90)
    return told[0]


def _values(cluster: KafkaCluster, topic: str) -> list[bytes]:
    return [bytes(message.value() or b"") for message in _messages(cluster, topic)]


def _messages(cluster: KafkaCluster, topic: str) -> list[Message]:
    """All records in the topic."""
    consumer = Consumer(reader_config(cluster.settings) | {"enable.partition.eof": True})
    numbers = cluster.address.metadata(topic).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    found: list[Message] = []
    ended: set[int] = set()
    while len(ended) < len(numbers):
        message = consumer.poll(60)
        assert message is not None
        error = message.error()
        if error is None:
            found.append(message)
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition() or 0)
    consumer.close()
    return found
