"""The engine's thread: how it handles faults, unwanted images, and memory."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest
from PIL.Image import Image
from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.device.batching import BatchLimits
from zimage_consumers.image_worker.device.generate import Batch, EngineThread, check_images
from zimage_consumers.image_worker.device.leaks import SETTLE
from zimage_consumers.image_worker.window.jobs import (
    BatchDone,
    EngineLost,
    Failed,
    Generated,
    Generating,
    Job,
    MemoryLeaked,
    Notice,
    Outcome,
    RequestCancelledError,
    Stage,
)
from zimage_stream.engines.base import ImageSpec, Previews, Stepped, never
from zimage_stream.engines.simulated import SimulatedEngine, draw
from zimage_stream.errors import EngineError
from zimage_stream.events.progress import ProgressStage
from zimage_stream.settings import EngineSettings
from zimage_stream.simulated_faults import Fault
from zimage_stream.telemetry.metrics import Metrics

MIB = 1 << 20
KNOWN_GOOD = "a red circle on a white background"


class Running:
    """A thread with a simulated engine, and the outcomes it reported."""

    def __init__(
        self, engine: SimulatedEngine, settings: EngineSettings, tells_steps: bool, tells_previews: bool
    ) -> None:
        self.told: list[Notice] = []
        self.images: list[tuple[Job, Image]] = []
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.registry = CollectorRegistry()
        self.thread = EngineThread(
            engine,
            BatchLimits(8),
            lambda job, image, timings: self.images.append((job, image)),
            self.outcomes.put,
            Metrics(self.registry),
            settings,
            self.told.append,
            tells_steps,
            tells_previews,
        )

    def outcome(self) -> Outcome:
        """The next outcome, except reports about generated images."""
        while isinstance(outcome := self.outcomes.get(timeout=120), Generating | Generated):
            pass
        return outcome

    def allocated(self) -> float | None:
        return self.registry.get_sample_value("zimage_device_memory_bytes", {"kind": "allocated"})


@contextmanager
def running(
    faults: dict[str, str] | None = None,
    simulated_ms: float = 0.0,
    leak_limit_bytes: int = 64 * MIB,
    kind: type[SimulatedEngine] = SimulatedEngine,
    tells_steps: bool = False,
    tells_previews: bool = False,
) -> Iterator[Running]:
    engine = kind(simulated_ms / 1e3, {piece: Fault.parse(text) for piece, text in (faults or {}).items()})
    settings = EngineSettings(kind="simulated", leak_limit_bytes=leak_limit_bytes)
    here = Running(engine, settings, tells_steps, tells_previews)
    here.thread.start()
    try:
        yield here
    finally:
        here.thread.stop()
        here.thread.join(120)
        assert not here.thread.is_alive()


def test_a_batch_that_is_no_longer_wanted_is_cut_short_and_the_next_one_runs() -> None:
    with running(simulated_ms=1_000_000) as here:
        unwanted, wanted = job(width=1024, height=1024), job(width=64, height=64, steps=1)
        here.thread.submit(Batch(1, (unwanted,)))
        here.thread.submit(Batch(2, (wanted,)))
        time.sleep(0.2)
        unwanted.assignment.gone = True
        assert here.outcome() == BatchDone(1)
        wanted.assignment.gone = True
        assert here.outcome() == BatchDone(2)
    assert here.images == []


def test_of_a_batch_only_what_is_wanted_is_generated() -> None:
    with running(simulated_ms=1_000) as here:
        gone, wanted, cancelled = (job(width=512, height=512) for _ in range(3))
        gone.assignment.gone = True
        cancelled.cancelled = RequestCancelledError(None, Stage.MARKED)
        here.thread.submit(Batch(1, (gone, wanted, cancelled)))
        assert here.outcome() == Failed(cancelled, cancelled.cancelled)
        assert here.outcome() == BatchDone(1)
    assert [each for each, _ in here.images] == [wanted]


def told(here: Running) -> list[tuple[str, int, int, int]]:
    """Stage, number of requests, step and steps of what was told."""
    return [(each.stage.value, len(each.subjects), each.step, each.steps) for each in here.told]


@pytest.mark.parametrize("tells_steps", [False, True])
def test_a_batch_is_told_when_it_begins_at_each_step_and_when_its_images_are_generated(
    tells_steps: bool,
) -> None:
    with running(tells_steps=tells_steps) as here:
        jobs = job(width=64, height=64, steps=3), job(width=64, height=64, steps=3)
        here.thread.submit(Batch(1, jobs))
        assert here.outcome() == BatchDone(1)
    steps = [("STEP", 2, step, 3) for step in (1, 2, 3)] if tells_steps else []
    assert told(here) == [("STARTED", 2, 0, 3), *steps, ("GENERATED", 2, 3, 3)]
    assert here.told[0].subjects == tuple((each.record.source, each.decoded) for each in jobs)


def test_a_batch_that_is_split_begins_again_and_the_known_good_image_is_nobody_s_progress() -> None:
    with running({"poison": "raise"}, tells_steps=True) as here:
        jobs = tuple(job(prompt=word, width=64, height=64, steps=1) for word in ("medicine", "poison"))
        here.thread.submit(Batch(1, jobs))
        assert isinstance(here.outcome(), Failed)
        assert here.outcome() == BatchDone(1)
    started, step, generated = ("STARTED", 1, 0, 1), ("STEP", 1, 1, 1), ("GENERATED", 1, 1, 1)
    assert told(here) == [("STARTED", 2, 0, 1), started, step, generated, started]


def shown(here: Running) -> list[tuple[int, list[str]]]:
    """Of each step that was told: its number, and the prompts of the requests, with ``+`` if previewed."""
    found = []
    for each in here.told:
        if each.stage is ProgressStage.STEP:
            words = [request.prompt + "+" * (source in each.previews) for source, request in each.subjects]
            found.append((each.step, words))
    return found


@pytest.mark.parametrize(
    ("tells_steps", "tells_previews", "expected"),
    [
        (False, False, []),
        (True, False, [(step, ["a", "b", "c"]) for step in (1, 2, 3, 4)]),
        (False, True, [(1, ["a+"]), (2, ["a+", "c+"]), (3, ["a+"])]),
        (
            True,
            True,
            [(1, ["a+", "b", "c"]), (2, ["a+", "b", "c+"]), (3, ["a+", "b", "c"]), (4, ["a", "b", "c"])],
        ),
    ],
)
def test_previews_are_told_of_the_requests_that_ask_for_them_with_their_steps(
    tells_steps: bool, tells_previews: bool, expected: list[tuple[int, list[str]]]
) -> None:
    with running(tells_steps=tells_steps, tells_previews=tells_previews) as here:
        jobs = [
            job(prompt=prompt, previews=previews, width=64, height=64, steps=4)
            for prompt, previews in (("a", 3), ("b", 0), ("c", 1))
        ]
        here.thread.submit(Batch(1, tuple(jobs)))
        assert here.outcome() == BatchDone(1)
    assert shown(here) == expected
    others = [each.stage.value for each in here.told if each.stage is not ProgressStage.STEP]
    assert others == ["STARTED", "GENERATED"]


class Previewing(SimulatedEngine):
    """Its previews note the thread that makes them."""

    makers: list[str]

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        def encode() -> bytes:
            self.makers.append(threading.current_thread().name)
            return b"jpeg"

        assert previews is not None
        assert stepped is not None
        previews.show(0, 1, encode)
        stepped(1, 2)
        return super().generate(specs, cancelled)


def test_previews_are_made_by_whoever_is_told_and_not_on_the_engine_s_thread() -> None:
    Previewing.makers = []
    with running(kind=Previewing, tells_previews=True) as here:
        here.thread.submit(Batch(1, (job(width=64, height=64, previews=1),)))
        assert here.outcome() == BatchDone(1)
    (encode,) = (encode for each in here.told for encode in each.previews.values())
    assert Previewing.makers == []
    assert encode() == b"jpeg"


class Asked(SimulatedEngine):
    """Notes what it is asked to report."""

    reports: list[tuple[Stepped | None, Previews | None]]

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        self.reports.append((stepped, previews))
        return super().generate(specs, cancelled)


def test_an_engine_reports_nothing_where_no_request_asks_for_previews() -> None:
    Asked.reports = []
    with running(kind=Asked, tells_previews=True) as here:
        here.thread.submit(Batch(1, (job(width=64, height=64),)))
        assert here.outcome() == BatchDone(1)
    assert Asked.reports == [(None, None)]


def test_requests_that_are_not_wanted_any_more_are_not_told() -> None:
    with running(simulated_ms=1_000) as here:
        jobs = job(width=512, height=512), job(width=512, height=512)
        here.thread.submit(Batch(1, jobs))
        while not here.told:
            time.sleep(0.001)
        jobs[0].assignment.gone = True
        assert here.outcome() == BatchDone(1)
    assert told(here) == [("STARTED", 2, 0, 8), ("GENERATED", 1, 8, 8)]


class Older(SimulatedEngine):
    """Knows nothing of steps."""

    def generate(  # type: ignore[override]
        self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = never
    ) -> list[Image]:
        return super().generate(specs, cancelled)


def test_an_engine_that_reports_no_steps_serves_as_before() -> None:
    with running(kind=Older, tells_steps=True) as here:
        here.thread.submit(Batch(1, (job(width=64, height=64),)))
        assert here.outcome() == BatchDone(1)
    assert told(here) == [("STARTED", 1, 0, 8), ("GENERATED", 1, 8, 8)]


def test_half_an_image_fails_only_its_own_request() -> None:
    with running({"poison": "corrupt"}) as here:
        good, bad = job(prompt="medicine"), job(prompt="poison")
        here.thread.submit(Batch(1, (good, bad)))
        failed, done = here.outcome(), here.outcome()
    assert isinstance(failed, Failed)
    assert failed.job is bad
    assert "('RGB', 1024, 512)" in str(failed.error)
    assert done == BatchDone(1)
    assert [each for each, _ in here.images] == [good]


def test_a_device_that_makes_half_of_the_known_good_image_is_sick() -> None:
    with running({"poison": "raise", KNOWN_GOOD: "corrupt"}) as here:
        here.thread.submit(Batch(1, (job(prompt="poison"),)))
        lost = here.outcome()
    assert isinstance(lost, EngineLost)
    assert lost.sick


def test_leaked_memory_is_reported_once_and_memory_is_exported_after_every_batch() -> None:
    with running({"drip": "leak:8"}, leak_limit_bytes=64 * MIB) as here:
        for number in range(SETTLE + 20):
            here.thread.submit(Batch(number, (job(prompt="drip", width=64, height=64),)))
            outcome = here.outcome()
            while not isinstance(outcome, BatchDone):
                assert isinstance(outcome, MemoryLeaked)
                # Eight batches reach the limit, and the ninth exceeds it.
                assert (number, outcome.grown) == (SETTLE + 8 + 1, 72 * MIB)
                outcome = here.outcome()
    assert here.allocated() == (SETTLE + 20) * 8 * MIB
    assert here.outcomes.empty()


def test_memory_that_stays_within_its_limit_is_not_a_leak() -> None:
    with running({"drip": "leak:8"}, leak_limit_bytes=64 * MIB) as here:
        for number in range(8):
            here.thread.submit(Batch(number, (job(prompt="drip", width=64, height=64),)))
        for number in range(8, 100):
            here.thread.submit(Batch(number, (job(width=64, height=64),)))
        assert [here.outcome() for _ in range(100)] == [BatchDone(number) for number in range(100)]


class Speechless(SimulatedEngine):
    """Generates images, and fails at any other call."""

    closed = False

    def device_memory(self) -> Mapping[str, int]:
        raise RuntimeError("the driver does not respond")

    def idle(self) -> None:
        raise RuntimeError("the driver does not respond")

    def close(self) -> None:
        Speechless.closed = True


@pytest.mark.parametrize("busy", [True, False])
def test_a_failure_of_the_thread_outside_a_batch_is_reported(
    busy: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Speechless, "closed", False)
    with running(kind=Speechless) as here:
        if busy:
            here.thread.submit(Batch(1, (job(width=64, height=64),)))
            assert here.outcome() == BatchDone(1)
        lost = here.outcome()
    assert isinstance(lost, EngineLost)
    assert not lost.sick
    assert "the driver does not respond" in str(lost.error)
    # The traceback is in the log.
    assert any(record.exc_info for record in caplog.records)
    assert Speechless.closed


SPEC = ImageSpec("a heron", 96, 64, 8, 0.0, 1)


@pytest.mark.parametrize(
    "images",
    [
        [],
        [draw(SPEC)] * 3,
        [draw(SPEC), draw(SPEC).convert("L")],
        [draw(SPEC), draw(SPEC).convert("RGBA")],
        [draw(SPEC), draw(SPEC).rotate(90, expand=True)],
    ],
)
def test_images_that_differ_from_their_specs_are_an_engine_error(images: list[Image]) -> None:
    check_images([SPEC, SPEC], [draw(SPEC), draw(SPEC)])
    with pytest.raises(EngineError, match=r"\('RGB', 96, 64\)"):
        check_images([SPEC, SPEC], images)
