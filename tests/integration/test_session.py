"""A membership in the group, on a real broker, where taking partitions over goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.integration.mock_cluster import MockCluster, Request
from tests.services.addresses import KafkaAddress
from zimage_consumers.image_worker import session as module
from zimage_consumers.image_worker.publish import ClientsLostError
from zimage_consumers.image_worker.session import Session
from zimage_stream.kafka.clients import producer_config, transactional_config, worker_consumer_config
from zimage_stream.settings import KafkaSettings, Settings, TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

ALL = {0, 1, 2, 3}
"""Partitions of the topic."""


@pytest.fixture
def make_session(kafka: KafkaAddress, topics: TopicSettings) -> Callable[..., Session]:
    def nothing(partitions: Collection[int]) -> None:
        return

    def make(address: KafkaSettings = kafka.settings) -> Session:
        return Session(
            Settings(
                kafka=address,
                topics=topics,
                worker={"group_id": topics.requests},  # type: ignore[arg-type]
            ),
            slot="slot",
            owner=1,
            first_epoch=1,
            give_up=lambda: False,
            on_revoke=nothing,
            on_gone=nothing,
            health=Health(),
            metrics=Metrics(CollectorRegistry()),
        )

    return make


def polled(session: Session) -> set[int]:
    session.poll(0.1)
    return set(session.held)


def poll_for(session: Session, seconds: float) -> set[int]:
    """What it holds after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        polled(session)
    return set(session.held)


def test_while_no_checkpoint_can_be_read_nothing_is_held_and_leaving_is_clean(
    make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # No broker answers within no time: as one that is paused does not in any.
    monkeypatch.setattr(module, "TAKE_OVER_TIMEOUT_S", 0.0)
    monkeypatch.setattr(module, "TAKE_OVER_SHARE", 0.0)
    impatient = make_session()
    impatient.join()
    until(lambda: polled(impatient) or "can be read yet" in caplog.text, 30, "it has asked")
    assert poll_for(impatient, 2.0) == set()
    assert caplog.text.count("can be read yet") == 1
    impatient.abandon()
    assert impatient.clean

    monkeypatch.undo()
    session = make_session()
    session.join()
    assert until(lambda: polled(session), 30, "the next one has partitions") == ALL
    session.claim()
    session.close()
    assert session.clean


def test_what_is_dropped_without_being_released_is_not_clean(make_session: Callable[[], Session]) -> None:
    session = make_session()
    session.join()
    until(lambda: polled(session), 30, "it has partitions")
    session.abandon()
    assert not session.clean


def test_a_transaction_that_nobody_ends_holds_up_its_own_partitions_alone(
    kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[[], Session]
) -> None:
    dead = Producer(transactional_config(kafka.settings, f"{topics.requests}-dead"))
    dead.init_transactions(30)
    dead.begin_transaction()
    offsets = [TopicPartition(topics.requests, number, 0) for number in (1, 2)]
    # As a tool's commit, which a group without members takes.
    tool = Consumer(worker_consumer_config(kafka.settings, topics.requests, "dead"))
    dead.send_offsets_to_transaction(offsets, tool.consumer_group_metadata(), 30)

    session = make_session()
    session.join()
    until(lambda: polled(session) == ALL - {1, 2}, 30, "it holds what it can")
    session.claim()
    assert poll_for(session, 2.0) == ALL - {1, 2}
    dead.abort_transaction(30)
    until(lambda: polled(session) == ALL, 30, "it holds the rest")
    session.claim()
    session.close()


def test_partitions_that_left_while_they_were_paused_deliver_when_they_come_back(
    kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    session.join()
    until(lambda: polled(session) == ALL, 30, "it holds all partitions")
    session.claim()
    session.regulate(lambda held: True)
    other = Consumer(worker_consumer_config(kafka.settings, topics.requests, "other"))
    other.subscribe([topics.requests])

    def shared() -> bool:
        other.poll(0.1)
        ours, theirs = polled(session), {place.partition for place in other.assignment()}
        return bool(theirs) and theirs == ALL - ours

    until(shared, 30, "the other member has the rest")
    other.close()
    until(lambda: polled(session) == ALL, 30, "it holds all partitions again")
    session.claim()
    session.regulate(lambda held: False)

    producer = Producer(producer_config(kafka.settings))
    for number in ALL:
        producer.produce(topics.requests, b"request", partition=number)
    assert producer.flush(30) == 0
    delivered = set()

    def all_delivered() -> bool:
        message = session.poll(0.1)
        if message is not None:
            delivered.add(message.partition())
        return delivered == ALL

    until(all_delivered, 15, "a record of each partition")
    session.close()


@pytest.mark.parametrize(
    ("waited_s", "patience_s"), [(0.0, 0.25), (2.0, 0.25), (10.0, 1.0), (20.0, 2.0), (3_600.0, 2.0)]
)
def test_the_longer_checkpoints_are_held_up_the_more_patient_it_is_up_to_a_most(
    waited_s: float, patience_s: float
) -> None:
    assert module.patience_s(waited_s) == patience_s


def test_a_group_that_it_may_not_read_ends_the_session(
    make_session: Callable[..., Session], topics: TopicSettings
) -> None:
    with MockCluster() as cluster:
        cluster.create_topic(topics.requests)
        session = make_session(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers))
        session.join()
        cluster.answer(Request.OFFSET_FETCH, [KafkaError.GROUP_AUTHORIZATION_FAILED] * 9)
        with pytest.raises(ClientsLostError, match="cannot be read"):
            until(lambda: polled(session), 30, "it has partitions")
        assert session.held == {}
        session.abandon()
