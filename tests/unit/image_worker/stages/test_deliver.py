"""Whether the object or the store is at fault when the store refuses an object."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from tests.fleet.workers import until
from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.stages import deliver
from zimage_consumers.image_worker.stages.deliver import Delivery
from zimage_consumers.image_worker.window.jobs import (
    Failed,
    Job,
    LookedUp,
    Outcome,
    RequestCancelledError,
    Stage,
    Stored,
    Timings,
)
from zimage_stream.errors import IdConflictError, StoreMisconfiguredError, StoreRejectedError
from zimage_stream.stores.base import Put
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

TAKES, REFUSES, FULL = "takes", "refuses", "full"


class ScriptedStore(DirectoryStore):
    """Gives these answers in order, to objects and canaries alike; after that it accepts everything.

    The directory store's own writes create no canaries here.
    """

    def __init__(self, path: Path, *answers: str) -> None:
        super().__init__(path)
        self._answers = list(answers)

    def _say(self, what: str) -> None:
        match self._answers.pop(0) if self._answers else TAKES:
            case "refuses":
                raise StoreRejectedError(f"{what} is refused")
            case "full":
                raise StoreMisconfiguredError("the disk is full")

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        self._say(key)
        return super().put(key, data, content_type, metadata)

    def probe(self) -> None:
        self._say("a canary")


@pytest.fixture
def delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Outcome, Health]]:
    """How an image's delivery ends when the store answers like this."""
    monkeypatch.setattr(deliver, "_WAIT_S", 0.01)

    def deliver_to(*answers: str) -> tuple[Outcome, Health]:
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        health = Health()
        delivery = Delivery(
            ScriptedStore(tmp_path, *answers),
            model="simulated",
            public_base_url=None,
            encode_threads=1,
            upload_threads=1,
            report=outcomes.put,
            health=health,
            metrics=Metrics(CollectorRegistry()),
        )
        try:
            delivery.deliver(job(width=64, height=64), Image.new("RGB", (64, 64)), Timings())
            return outcomes.get(timeout=120), health
        finally:
            delivery.close()

    return deliver_to


def test_an_object_refused_while_others_are_accepted_is_at_fault(
    delivered: Callable[..., tuple[Outcome, Health]],
) -> None:
    outcome, health = delivered(REFUSES, TAKES, REFUSES, TAKES)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, StoreRejectedError)
    assert health.is_up("store")


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param((FULL,), id="full"),
        pytest.param((REFUSES, REFUSES, REFUSES, FULL), id="everything is refused"),
        pytest.param((REFUSES, TAKES), id="it recovers between an object and its canary"),
        pytest.param((REFUSES, TAKES, FULL, REFUSES, TAKES), id="it is intermittent"),
        pytest.param((REFUSES, TAKES, REFUSES, REFUSES), id="it recovers, then fails again"),
    ],
)
def test_delivery_waits_while_the_store_refuses_every_object(
    delivered: Callable[..., tuple[Outcome, Health]], answers: tuple[str, ...]
) -> None:
    outcome, health = delivered(*answers)
    assert isinstance(outcome, Stored)
    assert health.is_up("store")


@pytest.mark.parametrize("format_", ["png", "webp", "jpeg"])
def test_an_image_of_another_format_under_the_same_id_is_found(tmp_path: Path, format_: str) -> None:
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    delivery = Delivery(
        DirectoryStore(tmp_path),
        model="simulated",
        public_base_url=None,
        encode_threads=1,
        upload_threads=1,
        report=outcomes.put,
        health=Health(),
        metrics=Metrics(CollectorRegistry()),
    )
    try:
        first = job(request_id="same", width=64, height=64, format=format_)
        delivery.deliver(first, Image.new("RGB", (64, 64)), Timings())
        assert isinstance(outcomes.get(timeout=120), Stored)
        for other in ("png", "webp", "jpeg"):
            delivery.look_up(1, job(request_id="same", width=64, height=64, format=other))
            found = outcomes.get(timeout=120)
            assert isinstance(found, LookedUp)
            if other == format_:
                assert isinstance(found.ended, Stored)
            else:
                assert isinstance(found.ended, Failed)
                assert isinstance(found.ended.error, IdConflictError)
    finally:
        delivery.close()


class Cancelled:
    """A delivery with one thread for each stage, and a job that is cancelled on the way."""

    def __init__(self, folder: Path, store: DirectoryStore | None = None) -> None:
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.registry = CollectorRegistry()
        self.delivery = Delivery(
            store or DirectoryStore(folder),
            model="simulated",
            public_base_url=None,
            encode_threads=1,
            upload_threads=1,
            report=self.outcomes.put,
            health=Health(),
            metrics=Metrics(self.registry),
        )
        self.job = job(width=64, height=64)
        self.folder = folder

    def deliver(self, one: Job | None = None) -> None:
        self.delivery.deliver(one or self.job, Image.new("RGB", (64, 64)), Timings())

    def cancel(self) -> None:
        self.job.cancelled = RequestCancelledError(None, Stage.DELIVERING)

    def outcome(self) -> Outcome:
        return self.outcomes.get(timeout=120)

    def encoded(self) -> float | None:
        return self.registry.get_sample_value("zimage_encode_seconds_count")

    def stored(self) -> list[Path]:
        return [each for each in self.folder.rglob("*.png") if self.job.decoded.request_id in each.name]


def test_what_is_cancelled_before_its_encoding_is_neither_encoded_nor_stored(tmp_path: Path) -> None:
    here = Cancelled(tmp_path)
    here.cancel()
    here.deliver()
    assert here.outcome() == Failed(here.job, here.job.cancelled or ValueError())
    assert not here.encoded()
    assert here.stored() == []
    here.delivery.close()


class BusyStore(DirectoryStore):
    """Takes objects only when allowed to, and says which it was given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.may_take = threading.Event()

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        self.begun.put(key)
        assert self.may_take.wait(120)
        return super().put(key, data, content_type, metadata)


def test_what_is_cancelled_between_encoding_and_upload_is_not_stored(tmp_path: Path) -> None:
    store = BusyStore(tmp_path)
    here, other = Cancelled(tmp_path, store), job(width=64, height=64)
    # The only upload thread is busy with another image.
    here.deliver(other)
    assert store.begun.get(timeout=120) == other.decoded.object_key
    here.deliver()
    until(lambda: here.encoded() == 2, 60, "the image is encoded")
    here.cancel()
    store.may_take.set()
    outcomes = [here.outcome(), here.outcome()]
    assert isinstance(outcomes[0], Stored)
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].error is here.job.cancelled
    assert here.stored() == []
    here.delivery.close()


def test_what_is_cancelled_once_its_upload_has_begun_is_stored(tmp_path: Path) -> None:
    store = BusyStore(tmp_path)
    here = Cancelled(tmp_path, store)
    here.deliver()
    assert store.begun.get(timeout=120) == here.job.decoded.object_key
    here.cancel()
    store.may_take.set()
    assert isinstance(here.outcome(), Stored)
    assert len(here.stored()) == 1
    here.delivery.close()
