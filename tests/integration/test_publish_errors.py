"""Every error that a broker may answer to every request of a publication.

Whatever it is, a publication ends in one of three ways: it is out; nothing of it is out and the same
publisher goes on; or nobody knows, and a new publisher of the same slot goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.fleet.workers import until
from tests.integration.mock_cluster import MockCluster, Request
from zimage_consumers.image_worker.publish import (
    ClientsLostError,
    PublishAbortedError,
    RefusedRecordError,
    TransactionalPublisher,
)
from zimage_consumers.image_worker.terminal import Outgoing
from zimage_stream.errors import ZImageError
from zimage_stream.kafka.clients import worker_consumer_config
from zimage_stream.settings import KafkaSettings
from zimage_stream.telemetry.health import Health

TOPIC = "zimage.requests"
RESULT = Outgoing("zimage.results", b"key", b"value", [])
ONCE, FOR_A_WHILE = 1, 4
GOES_ON_S = 40.0
"""The mock's group may be joining anew meanwhile, which refuses whatever is tried."""

CODES = {
    name: getattr(KafkaError, name)
    for name in (
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "NOT_COORDINATOR",
        "NOT_LEADER_FOR_PARTITION",
        "REQUEST_TIMED_OUT",
        "NOT_ENOUGH_REPLICAS",
        "MSG_SIZE_TOO_LARGE",
        "TOPIC_AUTHORIZATION_FAILED",
        "GROUP_AUTHORIZATION_FAILED",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "ILLEGAL_GENERATION",
        "UNKNOWN_MEMBER_ID",
        "REBALANCE_IN_PROGRESS",
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
        "INVALID_PRODUCER_EPOCH",
        "INVALID_TXN_STATE",
        "INVALID_PRODUCER_ID_MAPPING",
        "CONCURRENT_TRANSACTIONS",
        "UNKNOWN_PRODUCER_ID",
        "UNKNOWN",
    )
} | {"PRODUCER_FENCED": 90, "FENCED_INSTANCE_ID": 82}
PASSING = ("NOT_COORDINATOR", "INVALID_PRODUCER_EPOCH")
REQUESTS = (
    Request.PRODUCE,
    Request.ADD_PARTITIONS_TO_TXN,
    Request.ADD_OFFSETS_TO_TXN,
    Request.TXN_OFFSET_COMMIT,
    Request.END_TXN,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[MockCluster]:
    with MockCluster() as cluster:
        for topic in (TOPIC, RESULT.topic):
            cluster.create_topic(topic)
        yield cluster


@pytest.fixture(scope="module")
def kafka(cluster: MockCluster) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, extra={"log_level": "0"})


@pytest.fixture(scope="module")
def member(kafka: KafkaSettings) -> Iterator[Consumer]:
    consumer = Consumer(worker_consumer_config(kafka, "group", "slot"))
    consumer.subscribe([TOPIC])
    stay_in_the_group(consumer)
    yield consumer
    consumer.close()


def stay_in_the_group(consumer: Consumer) -> None:
    """Poll, which whoever was put out of the group needs to come back: as on a machine that stood still."""

    def polled() -> bool:
        consumer.poll(0)
        return bool(consumer.memberid() and consumer.assignment())

    until(polled, 30, "it is in the mock's group")


def publisher(kafka: KafkaSettings, slot: str, member: Consumer) -> TransactionalPublisher:
    made = TransactionalPublisher(kafka, slot, TOPIC, member, lambda: False, Health())
    made.start()
    return made


@pytest.mark.parametrize(
    ("code", "times"), [(code, ONCE) for code in CODES] + [(code, FOR_A_WHILE) for code in PASSING]
)
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_a_publication_ends_in_one_of_three_ways(
    cluster: MockCluster, kafka: KafkaSettings, member: Consumer, request_: Request, code: str, times: int
) -> None:
    slot = f"{request_.name}-{code}-{times}"
    ours = publisher(kafka, slot, member)
    offsets = [TopicPartition(TOPIC, 0, 1, "checkpoint")]
    cluster.answer(request_, [CODES[code]] * times)
    said: list[ZImageError] = []
    deadline = time.monotonic() + GOES_ON_S
    while True:
        try:
            ours.publish([RESULT], offsets)
        except (PublishAbortedError, RefusedRecordError, ClientsLostError) as error:
            said.append(error)
            assert time.monotonic() < deadline, f"it is not out, after {said}"
            cluster.answer_in_order(request_)
            if isinstance(error, ClientsLostError):
                ours.close()
                ours = publisher(kafka, slot, member)
            stay_in_the_group(member)
        else:
            break
    cluster.answer_in_order(request_)
    ours.close()
