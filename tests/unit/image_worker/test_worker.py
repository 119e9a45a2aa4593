"""What the worker reports and does around its turns, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import CollectorRegistry

from zimage_consumers.image_worker.device.errors import EngineLostError
from zimage_consumers.image_worker.exits import ExitCode
from zimage_consumers.image_worker.group.publish import ClientsLostError
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.window.jobs import EngineLost
from zimage_consumers.image_worker.worker import Worker
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.errors import EngineError
from zimage_stream.events.codec import Codec
from zimage_stream.settings import Settings
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer


class Gone:
    """A session whose clients are lost by the time the worker leaves it."""

    def __init__(self) -> None:
        self.abandoned = False

    def close(self) -> None:
        raise ClientsLostError("the coordinator is unknown")

    def abandon(self) -> None:
        self.abandoned = True


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def worker(tmp_path: Path, health: Health) -> Iterator[Worker]:
    store = DirectoryStore(tmp_path / "store")
    store.create()
    made = Worker(
        Settings(),
        SimulatedEngine(0.0),
        store,
        Codec(),
        slot="slot",
        health=health,
        metrics=Metrics(CollectorRegistry()),
        tracer=create_tracer(False, "slot"),
    )
    yield made
    made._path.close()


def test_a_sick_device_is_reported_even_if_its_requests_cannot_be_given_back(worker: Worker) -> None:
    gone = Gone()
    error = EngineLostError(EngineLost(EngineError("the known-good image failed"), sick=True))
    assert worker._end_without_engine(cast(Session, gone), error) is ExitCode.SICK
    assert gone.abandoned


class Refusing(Gone):
    """A session whose clients refuse every call."""

    clean = True

    def join(self) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))


class Joined(Gone):
    """A session that stops the worker as soon as it has joined."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self.left = False

    def join(self) -> None:
        self._worker.stop()

    def close(self) -> None:
        self.left = True


def test_clients_that_refuse_a_call_are_replaced(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing, joined = Refusing(), Joined(worker)
    monkeypatch.setattr(worker, "_open", lambda: joined)
    assert worker._serve(cast(Session, refusing)) is ExitCode.DONE
    assert refusing.abandoned
    assert joined.left
