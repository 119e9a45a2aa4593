"""A membership in the group, on a real broker, where taking partitions over goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.services.addresses import KafkaAddress
from zimage_consumers.image_worker import session as module
from zimage_consumers.image_worker.publish import ClientsLostError
from zimage_consumers.image_worker.session import Session
from zimage_stream.settings import Settings, TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics


@pytest.fixture
def make_session(kafka: KafkaAddress, topics: TopicSettings) -> Callable[[], Session]:
    settings = Settings(
        kafka=kafka.settings,
        topics=topics,
        worker={"group_id": topics.requests},  # type: ignore[arg-type]
    )

    def nothing(partitions: Collection[int]) -> None:
        return

    def make() -> Session:
        return Session(
            settings,
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


def polled(session: Session) -> bool:
    session.poll(0.1)
    return bool(session.held)


def test_who_cannot_read_the_checkpoints_holds_nothing_and_says_so(
    make_session: Callable[[], Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No broker answers within no time: as one that is paused does not in 30 s.
    monkeypatch.setattr(module, "TAKE_OVER_TIMEOUT_S", 0.0)
    session = make_session()
    session.join()
    with pytest.raises(ClientsLostError, match="a rebalance failed"):
        until(lambda: polled(session), 30, "it has partitions")
    assert session.held == {}
    session.abandon()

    monkeypatch.undo()
    session = make_session()
    session.join()
    until(lambda: polled(session), 30, "the next one has partitions")
    session.claim()
    session.close()
