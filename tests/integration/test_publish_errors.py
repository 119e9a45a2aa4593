"""Every error that a broker may return for every request of a publication.

Whatever the error, a publication has one of three outcomes: it is published; nothing of it is published and
the same publisher continues; or the outcome is unknown, and a new publisher of the same slot continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from tests.integration.mock_cluster import MockCluster, Request
from zimage_consumers.image_worker.group.publish import (
    ClientsLostError,
    OutgoingRecord,
    PublishAbortedError,
    RefusedRecordError,
    TransactionalPublisher,
)
from zimage_stream.kafka.clients import worker_consumer_config
from zimage_stream.settings import KafkaSettings
from zimage_stream.telemetry.health import Health

TOPIC = "zimage.requests"
RESULT = OutgoingRecord("zimage.results", b"key", b"value", [])
ONCE, FOR_A_WHILE = 1, 4
TRIES = 4
"""One try that meets the error and one that succeeds; the others are for a machine that stalls."""
GOES_ON_S = 120.0
JOIN_S = 120.0

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


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    """A cluster for this test alone, so that its errors and transactional ids meet no other test's
    clients."""
    with MockCluster() as cluster:
        for topic in (TOPIC, RESULT.topic):
            cluster.create_topic(topic)
        yield cluster


@pytest.fixture
def kafka(cluster: MockCluster) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=cluster.bootstrap_servers, extra={"log_level": "0"})


@pytest.fixture
def joining(kafka: KafkaSettings) -> Iterator[Consumer]:
    consumer = Consumer(worker_consumer_config(kafka, "group", "slot"))
    consumer.subscribe([TOPIC])
    yield consumer
    consumer.close()


def stay_in_the_group(consumer: Consumer) -> None:
    """Poll until the consumer is in the group, as a new or removed member must."""
    deadline = time.monotonic() + JOIN_S
    consumer.poll(0)
    while not (consumer.memberid() and consumer.assignment()):
        assert time.monotonic() < deadline, "it does not get into the mock's group"
        consumer.poll(0.005)


def publisher(
    kafka: KafkaSettings, slot: str, consumer: Consumer, give_up: Callable[[], bool]
) -> TransactionalPublisher:
    made = TransactionalPublisher(kafka, slot, TOPIC, consumer, give_up, Health())
    made.start()
    return made


@pytest.mark.parametrize(
    ("code", "times"), [(code, ONCE) for code in CODES] + [(code, FOR_A_WHILE) for code in PASSING]
)
@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.name)
def test_a_publication_has_one_of_three_outcomes(
    cluster: MockCluster, kafka: KafkaSettings, joining: Consumer, request_: Request, code: str, times: int
) -> None:
    deadline = time.monotonic() + GOES_ON_S

    def late() -> bool:
        return time.monotonic() > deadline

    slot = f"{request_.name}-{code}-{times}"
    # As a worker does: the slot is claimed before the group is joined.
    ours = publisher(kafka, slot, joining, late)
    stay_in_the_group(joining)
    offsets = [TopicPartition(TOPIC, 0, 1, "checkpoint")]
    cluster.answer(request_, [CODES[code]] * times)
    # Only their messages: an error's traceback would keep an abandoned producer alive.
    said: list[str] = []
    while True:
        try:
            ours.publish([RESULT], offsets)
        except (PublishAbortedError, RefusedRecordError, ClientsLostError) as error:
            cluster.answer_in_order(request_)
            said.append(repr(error))
            assert len(said) < TRIES, f"it is not out, after {said}"
            assert not late(), f"it is not out, after {said}"
            if isinstance(error, ClientsLostError):
                ours.close()
                ours = publisher(kafka, slot, joining, late)
            stay_in_the_group(joining)
        else:
            break
    ours.close()


@pytest.mark.parametrize("records", [[], [RESULT]], ids=["a mark", "a result"])
def test_an_expired_transactional_id_costs_the_clients_but_not_the_worker(
    cluster: MockCluster, kafka: KafkaSettings, joining: Consumer, records: list[OutgoingRecord]
) -> None:
    ours = publisher(kafka, "slot", joining, lambda: False)
    stay_in_the_group(joining)
    forgotten = (Request.ADD_PARTITIONS_TO_TXN, Request.ADD_OFFSETS_TO_TXN)
    for request_ in forgotten:
        cluster.answer(request_, [KafkaError.INVALID_PRODUCER_ID_MAPPING] * 100)
    offsets = [TopicPartition(TOPIC, 0, 1, "checkpoint")]
    with pytest.raises(ClientsLostError):
        ours.publish(records, offsets)
    ours.close()
    for request_ in forgotten:
        cluster.answer_in_order(request_)
    stay_in_the_group(joining)
    ours = publisher(kafka, "slot", joining, lambda: False)
    ours.publish(records, offsets)
    ours.close()
