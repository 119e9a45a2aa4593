"""Putting batches on deck: nothing counts before its marks are committed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import SENT, job
from zimage_consumers.image_worker.batching import BatchLimits
from zimage_consumers.image_worker.checkpoint import Mark
from zimage_consumers.image_worker.deliver import Delivery
from zimage_consumers.image_worker.dispatch import Dispatcher
from zimage_consumers.image_worker.generate import EngineThread
from zimage_consumers.image_worker.intake import Intake
from zimage_consumers.image_worker.jobs import BatchDone, Job, Outcome, Stored
from zimage_consumers.image_worker.publish import CommitRefusedError
from zimage_consumers.image_worker.schedule import Scheduler
from zimage_consumers.image_worker.session import Session
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.events.codec import Codec
from zimage_stream.events.rules import Limits
from zimage_stream.settings import EngineSettings
from zimage_stream.stores.base import StoredObject
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics


class WatchedStore(DirectoryStore):
    """Tells when it has been asked for an object."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = threading.Event()

    def stat(self, key: str) -> StoredObject | None:
        found = super().stat(key)
        self.asked.set()
        return found


class Group:
    """Stands in for a session: takes marks, or refuses them once the store has answered."""

    def __init__(self, store: WatchedStore) -> None:
        self._store = store
        self.refuses = False
        self.marked: list[Mapping[int, Mapping[int, Mark | None]]] = []

    def mark(self, changes: Mapping[int, Mapping[int, Mark | None]]) -> None:
        assert self._store.asked.wait(10)
        if self.refuses:
            raise CommitRefusedError("a rebalance is in progress")
        self.marked.append(changes)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A dispatcher with an engine, a store and a group, and the outcomes that were reported."""
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    store = WatchedStore(tmp_path)
    metrics = Metrics(CollectorRegistry())
    limits = BatchLimits(8)

    def wanted(job: Job) -> bool:
        return True

    delivery = Delivery(
        store,
        model="simulated",
        public_base_url=None,
        encode_threads=1,
        upload_threads=1,
        wanted=wanted,
        report=outcomes.put,
        health=Health(),
        metrics=metrics,
    )
    engine = EngineThread(
        SimulatedEngine(0.0), limits, delivery.deliver, outcomes.put, wanted, metrics, EngineSettings()
    )
    scheduler = Scheduler({}, limits)
    dispatcher = Dispatcher(
        scheduler,
        Intake(Codec(), Limits(), lambda prompt: None),
        engine,
        delivery,
        max_attempts=3,
        wanted=wanted,
        fail=lambda job, error: pytest.fail(f"{job} failed: {error}"),
        report=outcomes.put,
    )
    engine.start()
    yield SimpleNamespace(
        dispatcher=dispatcher, scheduler=scheduler, store=store, group=Group(store), outcomes=outcomes
    )
    delivery.close()
    engine.stop()
    engine.join(10)
    assert not engine.is_alive()


def plan(here: SimpleNamespace) -> None:
    here.dispatcher.plan(cast(Session, here.group), SENT, expire=False)


def serve(here: SimpleNamespace, asked: Job) -> Stored:
    """Plan once more, and how the job ends; the end of its batch may be told before or after."""
    plan(here)
    outcomes = [here.outcomes.get(timeout=10) for _ in range(2)]
    assert [outcome for outcome in outcomes if isinstance(outcome, BatchDone)]
    [stored] = [outcome for outcome in outcomes if isinstance(outcome, Stored)]
    assert stored.job is asked
    return stored


@pytest.mark.parametrize("already_there", [True, False])
def test_what_the_store_says_while_marks_are_refused_counts_for_nothing(
    here: SimpleNamespace, already_there: bool
) -> None:
    first, again = job(width=64, height=64, request_id="same"), job(width=64, height=64, request_id="same")
    if already_there:
        here.scheduler.add(first)
        serve(here, first)
        here.dispatcher.resolved(first)
    here.store.asked.clear()
    here.scheduler.add(again)
    here.group.refuses = True
    with pytest.raises(CommitRefusedError):
        plan(here)
    assert not here.dispatcher.busy
    with pytest.raises(queue.Empty):
        here.outcomes.get(timeout=0.2)

    here.group.refuses = False
    assert serve(here, again).reused is already_there
    assert here.group.marked[-1][0][again.record.offset].open
