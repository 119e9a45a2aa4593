"""What a turn does, without a broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.message_path import (
    BYTES_PER_TURN,
    IDLE_POLL_S,
    MessagePath,
    poll_timeout_s,
)
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def path(tmp_path: Path, health: Health) -> Iterator[MessagePath]:
    store = DirectoryStore(tmp_path / "store")
    store.create()
    made = MessagePath(
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
    made.close()


@pytest.mark.parametrize(
    ("under_way", "quarantine_due", "wait_s"),
    [(False, False, IDLE_POLL_S), (True, False, 0.0), (False, True, 0.0), (True, True, 0.0)],
)
def test_a_turn_waits_for_records_only_while_nothing_else_is_due(
    under_way: bool, quarantine_due: bool, wait_s: float
) -> None:
    assert poll_timeout_s(under_way, quarantine_due) == wait_s


class Nothing:
    """What a session without partitions knows of them, and of cancellations."""

    stalled = 0

    def unresolved(self) -> dict[int, int]:
        return {}

    def read(self) -> list[Any]:
        return []

    def fetch(self) -> list[Any]:
        return []

    @property
    def ahead(self) -> Nothing:
        return self


class Idle:
    """A session to which no record comes."""

    cancellations = partitions = Nothing()

    def pause_only(self, to_pause: set[int]) -> None:
        """Do nothing: no partition is held."""

    def poll(self, wait_s: float) -> Any:
        """Return nothing: no record comes."""

    def claim(self) -> None:
        """Do nothing: there is nothing to commit."""


def test_a_service_that_no_request_waits_for_is_rechecked_after_an_outage(
    path: MessagePath, health: Health
) -> None:
    health.set_started()
    health.up("kafka")
    health.down("store", "refused to connect")
    health.down("registry", "refused to connect")
    deadline = time.monotonic() + 120
    while not health.ready()[0]:
        assert time.monotonic() < deadline
        path.turn(cast(Session, Idle()))


class Flooded:
    """A session whose partition holds an endless supply of records with 600 kB of headers."""

    def __init__(self) -> None:
        self.taken = 0
        self._paused = False

    def pause_only(self, to_pause: set[int]) -> None:
        self._paused = 0 in to_pause

    def poll(self, wait_s: float) -> Any:
        if self._paused:
            return None
        self.taken += 1
        headers = (("h", bytes(100_000)),) * 6
        return Record("requests", 0, self.taken - 1, None, b"v", headers, datetime.now(UTC))


def test_the_window_counts_headers(path: MessagePath, health: Health) -> None:
    flooded = Flooded()
    path.window.begin(Assignment(0, Ledger(Checkpoint(0)), informed=True))
    health.up("kafka")
    for _ in range(1_500):
        path._fetch(cast(Session, flooded))
    window = Settings().worker.window_bytes
    assert window // 700_000 < flooded.taken <= (window + BYTES_PER_TURN) // 600_000 + 2
