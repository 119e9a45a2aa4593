"""Which transactions a worker may end, on a real broker: those of its own former life, and no others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.services.addresses import KafkaAddress
from zimage_consumers.dead_letters.replay import Replayer
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import common_config, transactional_config, worker_consumer_config
from zimage_stream.settings import Settings, TopicSettings, WorkerSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

ALL = {0, 1, 2, 3}
"""Partitions of the topic."""


@pytest.fixture
def settings_of(kafka: KafkaAddress, topics: TopicSettings) -> Callable[[str], Settings]:
    def make(group: str) -> Settings:
        return Settings(kafka=kafka.settings, topics=topics, worker=WorkerSettings(group_id=group))

    return make


@pytest.fixture
def join(settings_of: Callable[[str], Settings]) -> Iterator[Callable[[str, str], Session]]:
    """A session that joins this group in this slot."""
    joined: list[Session] = []

    def make(group: str, slot: str) -> Session:
        settings = settings_of(group)
        session = Session(
            settings,
            AdminClient(common_config(settings.kafka)),
            Window(16_384, 64 << 20),
            Codec(),
            slot=slot,
            owner=1,
            give_up=lambda: False,
            on_revoke=lambda session: None,
            health=Health(),
            metrics=Metrics(CollectorRegistry()),
        )
        joined.append(session)
        session.join()
        return session

    yield make
    for session in joined:
        session.abandon()


def holds_all(session: Session) -> bool:
    session.poll(0.1)
    return set(session.window.assignments) == ALL


def test_slots_and_groups_whose_names_concatenate_equally_do_not_interfere(
    topics: TopicSettings, join: Callable[[str, str], Session]
) -> None:
    group = topics.requests
    first, second = join(group, "eu-x"), join(f"{group}-eu", "x")
    for session in (first, second):
        until(partial(holds_all, session), 30, "it holds all partitions")
    for session in (first, second):
        session.claim()


def test_a_replay_does_not_fence_a_worker_in_a_slot_of_that_name(
    topics: TopicSettings, settings_of: Callable[[str], Settings], join: Callable[[str, str], Session]
) -> None:
    worker = join(topics.requests, "replay")
    until(lambda: holds_all(worker), 30, "it holds all partitions")
    with Replayer(settings_of(topics.requests)):
        worker.claim()


def test_a_transaction_left_open_under_the_former_id_of_a_slot_ends_by_itself(
    kafka: KafkaAddress, topics: TopicSettings, join: Callable[[str, str], Session]
) -> None:
    group = topics.requests
    # As the previous version named it, here with the shortest timeout, since only the broker ends it.
    config = transactional_config(kafka.settings, f"zimage-{group}-slot")
    former = Producer({**config, "transaction.timeout.ms": 1_000})
    former.init_transactions(120)
    former.begin_transaction()
    former.produce(topics.results, b"never seen")
    tool = Consumer(worker_consumer_config(kafka.settings, group, "slot"))
    offsets = [TopicPartition(topics.requests, number, 7, "never seen") for number in ALL]
    former.send_offsets_to_transaction(offsets, tool.consumer_group_metadata(), 30)
    tool.close()

    session = join(group, "slot")
    until(lambda: holds_all(session), 60, "it holds all partitions")
    session.claim()
    assert {held.ledger.checkpoint.base for held in session.window.assignments.values()} == {0}
