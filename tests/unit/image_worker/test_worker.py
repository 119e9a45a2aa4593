"""What the worker says and does around its turns, without a broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.events.registries import AnyRegistry
from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.checkpoint import Checkpoint, Ledger
from zimage_consumers.image_worker.intake import Intake
from zimage_consumers.image_worker.jobs import EngineLost
from zimage_consumers.image_worker.publish import ClientsLostError
from zimage_consumers.image_worker.session import Held, Session
from zimage_consumers.image_worker.worker import BYTES_A_TURN, EngineLostError, ExitCode, Worker
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.errors import EngineError
from zimage_stream.events.codec import Codec
from zimage_stream.events.registry import Registry
from zimage_stream.events.rules import Limits
from zimage_stream.settings import RegistrySettings, Settings
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer


class Gone:
    """A session whose clients are lost by the time that it is to be left."""

    def __init__(self) -> None:
        self.held = {0: SimpleNamespace(epoch=1)}
        self.abandoned = False

    def close(self) -> None:
        raise ClientsLostError("the coordinator is not known any more")

    def abandon(self) -> None:
        self.abandoned = True


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def worker(tmp_path: Path, health: Health) -> Iterator[Worker]:
    made = Worker(
        Settings(),
        SimulatedEngine(0.0),
        DirectoryStore(tmp_path),
        Codec(),
        slot="slot",
        health=health,
        metrics=Metrics(CollectorRegistry()),
        tracer=create_tracer(False, "slot"),
    )
    yield made
    made._delivery.close()


def test_a_sick_device_is_told_even_where_its_requests_cannot_be_given_back(worker: Worker) -> None:
    gone = Gone()
    error = EngineLostError(EngineLost(EngineError("the known-good picture failed"), sick=True))
    assert worker._end_without_engine(cast(Session, gone), error) is ExitCode.SICK
    assert gone.abandoned


def test_the_registry_is_up_when_something_was_decoded_and_not_before(worker: Worker, health: Health) -> None:
    worker._session = cast(Session, Gone())
    health.down("registry", "the id of a result's schema cannot be had")
    worker._admit()
    assert not health.is_up("registry")
    # Its bytes are no request of ours, and nobody had to be asked.
    worker._incoming.append(job())
    worker._admit()
    assert not health.is_up("registry")
    good = job()
    good.record = replace(good.record, value=Codec().encode_request(good.decoded, "requests"))
    worker._incoming.append(good)
    worker._admit()
    assert health.is_up("registry")


def test_a_record_whose_schema_is_not_to_be_had_holds_up_no_other(worker: Worker, health: Health) -> None:
    worker._session = cast(Session, Gone())
    waits, good = job(), job()
    waits.record = replace(waits.record, value=b"\x00\x00\x00\x00\x07")
    good.record = replace(good.record, value=Codec().encode_request(good.decoded, "requests"))
    with AnyRegistry() as server:
        server.fail(7)
        registry = Registry(RegistrySettings(url=server.url))
        worker._intake = Intake(Codec(registry), Limits(), lambda prompt: 1)
        worker._incoming += [waits, good]
        worker._admit()
        registry.close()
    assert worker._scheduler.take_batch(0.0) == [good]
    assert health.is_up("registry")
    # It is still there, and is asked for again.
    worker._intake_after = 0.0
    worker._admit()
    assert worker._unread == [waits]


class Flooded:
    """A session whose partition holds records of 600 kB of headers without end."""

    def __init__(self) -> None:
        self.held = {0: Held(1, Ledger(Checkpoint(0)))}
        self.taken = 0
        self._paused = False

    def regulate(self, stop: Callable[[Held], bool]) -> None:
        self._paused = stop(self.held[0])

    def poll(self, wait_s: float) -> Any:
        if self._paused:
            return None
        self.taken += 1
        offset, headers = self.taken - 1, [("h", bytes(100_000))] * 6
        return SimpleNamespace(
            **{name: (lambda value=value: value) for name, value in {
                "topic": "requests", "partition": 0, "offset": offset, "key": None, "value": b"v",
                "timestamp": (1, 1), "headers": headers,
            }.items()}
        )  # fmt: skip


def test_the_window_counts_headers(worker: Worker, health: Health) -> None:
    flooded = Flooded()
    worker._session = cast(Session, flooded)
    health.up("kafka")
    for _ in range(1_500):
        worker._take_in(cast(Session, flooded))
    window = Settings().worker.window_bytes
    assert window // 700_000 < flooded.taken <= (window + BYTES_A_TURN) // 600_000 + 2
