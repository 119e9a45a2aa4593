"""Putting batches on deck: what is marked, what the store is queried for, and what is withdrawn."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from PIL.Image import Image
from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.device.batching import BatchLimits
from zimage_consumers.image_worker.device.generate import EngineThread
from zimage_consumers.image_worker.group.publish import CommitRefusedError
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.deliver import Delivery
from zimage_consumers.image_worker.stages.dispatch import Dispatcher
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.window.jobs import (
    BatchDone,
    Generated,
    Generating,
    Job,
    LookedUp,
    Outcome,
    RequestCancelledError,
    Stage,
    Stored,
)
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import MAX_MARKS, Mark
from zimage_stream.engines.base import ImageSpec, Previews, Stepped, never
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.events.codec import Codec
from zimage_stream.events.rules import Limits
from zimage_stream.settings import EngineSettings
from zimage_stream.stores.base import StoredObject
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics


class WatchedStore(DirectoryStore):
    """Signals when it is queried for an object, and answers when allowed to."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked, self.answers = threading.Event(), threading.Event()
        self.answers.set()
        self.questions: queue.SimpleQueue[str] = queue.SimpleQueue()

    def stat(self, key: str) -> StoredObject | None:
        self.questions.put(key)
        self.asked.set()
        assert self.answers.wait(120)
        return super().stat(key)


class Group:
    """Stands in for a session: commits marks, or refuses them once the store has been queried."""

    def __init__(self, store: WatchedStore) -> None:
        self._store = store
        self.refuses = False
        self.marks: dict[Job, Mark] = {}
        self.commits = 0

    def commit_marks(self, marks: Mapping[Job, Mark]) -> None:
        if self.refuses:
            assert self._store.asked.wait(120)
            raise CommitRefusedError("a rebalance is in progress")
        self.commits += 1
        self.marks |= marks


class Gated(SimulatedEngine):
    """Starts a batch when allowed to."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.runs, self.may_run = threading.Event(), threading.Event()
        self.may_run.set()

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        self.runs.set()
        assert self.may_run.wait(120)
        return super().generate(specs)


class Here:
    """A dispatcher with an engine, a store and a group, which handles their outcomes as a worker does."""

    def __init__(self, folder: Path) -> None:
        self.outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self.stored: list[Stored] = []
        self.failed: list[Job] = []
        self.publishes = True
        self.store, self.gate = WatchedStore(folder), Gated()
        self.group = Group(self.store)
        metrics, limits = Metrics(CollectorRegistry()), BatchLimits(8)
        self.delivery = Delivery(
            self.store,
            model="simulated",
            public_base_url=None,
            encode_threads=1,
            upload_threads=1,
            report=self.outcomes.put,
            health=Health(),
            metrics=metrics,
        )
        self.engine = EngineThread(
            self.gate,
            limits,
            self.delivery.deliver,
            self.outcomes.put,
            metrics,
            EngineSettings(),
        )
        self.window = Window(16_384, 64 << 20)
        self.scheduler = Scheduler({}, limits)
        self.dispatcher = Dispatcher(
            self.window,
            self.scheduler,
            Intake(Codec(), Limits(), lambda prompt: None),
            self.engine,
            self.delivery,
            max_attempts=3,
            max_batch=8,
        )

    def add(self, *jobs: Job) -> None:
        for each in jobs:
            if each.stage is None:
                each.assignment = self.window.assignments.setdefault(each.record.partition, each.assignment)
                self.window.enter(each)
            self.dispatcher.add(each)

    def plan(self) -> None:
        failed = self.dispatcher.plan(cast(Session, self.group), None)
        if failed is not None:
            self.failed.append(failed.job)

    def serve(self, until: Callable[[], object]) -> None:
        """Run turn after turn, as a worker does."""
        deadline = time.monotonic() + 120
        while not until():
            assert time.monotonic() < deadline
            self.plan()
            with suppress(queue.Empty):
                self._note(self.outcomes.get(timeout=0.01))
            if self.publishes:
                for job in self.served:
                    self.dispatcher.resolved(job)
                    self.window.exit(job)

    def _note(self, outcome: Outcome) -> None:
        match outcome:
            case LookedUp():
                if self.dispatcher.looked_up(outcome) and outcome.ended is not None:
                    self._note(outcome.ended)
            case BatchDone(batch_id):
                self.dispatcher.batch_done(batch_id)
            case Generating(jobs):
                self._move(jobs, Stage.GENERATING)
            case Generated(jobs):
                self._move(jobs, Stage.DELIVERING)
            case Stored(job):
                self.window.move(job, Stage.ENDED)
                self.stored.append(outcome)
            case _:
                pytest.fail(f"{outcome}")

    def _move(self, jobs: Sequence[Job], stage: Stage) -> None:
        for each in jobs:
            self.window.move(each, stage)

    def settle(self) -> None:
        """Serve until no work is left and no outcome arrives."""
        self.serve(lambda: not self.window.under_way and not len(self.scheduler))
        quiet_since = time.monotonic()

        def quiet() -> bool:
            return time.monotonic() - quiet_since > 0.05

        self.serve(quiet)

    def lose(self, partition: int) -> None:
        self.window.leave({partition})
        self.dispatcher.sweep()

    def give_back(self, partition: int) -> None:
        self.window.assignments[partition].leaving = True
        self.dispatcher.withdraw()

    @property
    def served(self) -> list[Job]:
        return [outcome.job for outcome in self.stored]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    here = Here(tmp_path)
    here.engine.start()
    yield here
    here.gate.may_run.set()
    here.store.answers.set()
    here.delivery.close()
    here.engine.stop()
    here.engine.join(120)
    assert not here.engine.is_alive()


def small(partition: int = 0, **request: Any) -> Job:
    return job(partition, width=64, height=64, **request)


@pytest.mark.parametrize("already_there", [True, False])
def test_the_stores_answers_are_ignored_when_the_marks_are_refused(here: Here, already_there: bool) -> None:
    first, again = small(request_id="same"), small(request_id="same")
    if already_there:
        here.add(first)
        here.settle()
    here.store.asked.clear()
    here.add(again)
    here.group.refuses = True
    with pytest.raises(CommitRefusedError):
        here.plan()
    assert not here.window.under_way
    here.group.refuses = False
    here.settle()
    assert here.served.count(again) == 1
    assert here.stored[-1].reused is already_there
    assert here.group.marks[again].open


def test_a_job_whose_image_was_stored_does_not_run_when_its_batch_is_withdrawn(here: Here) -> None:
    here.add(small(request_id="same"))
    here.settle()
    here.gate.runs.clear()
    here.gate.may_run.clear()
    here.add(job(width=128, height=64))
    here.serve(here.gate.runs.is_set)
    again, leaving = small(request_id="same"), small(partition=1)
    here.publishes = False
    here.add(again, leaving)
    here.serve(lambda: again in here.served)
    here.give_back(1)
    here.lose(1)
    here.publishes = True
    here.gate.may_run.set()
    here.settle()
    assert here.served.count(again) == 1
    assert leaving not in here.served


def test_the_store_is_queried_for_a_whole_batch_at_once(here: Here) -> None:
    here.store.answers.clear()
    batch = [small() for _ in range(8)]
    here.add(*batch)
    here.plan()
    # No query has been answered yet.
    due = {key for each in batch for key in (each.decoded.object_key, *each.decoded.other_object_keys)}
    assert {here.store.questions.get(timeout=120) for _ in due} == due


def test_a_batch_that_waits_for_the_store_is_withdrawn_at_once(here: Here) -> None:
    here.store.answers.clear()
    staying, leaving = small(), small(partition=1)
    here.add(staying, leaving)
    here.plan()
    assert leaving.stage is Stage.MARKED
    here.give_back(1)
    assert not here.window.leaving_under_way
    assert not here.window.under_way
    here.store.answers.set()
    here.settle()
    assert here.served == [staying]
    assert not here.group.marks[leaving].open


def test_a_job_lost_while_the_store_is_queried_does_not_run(here: Here) -> None:
    here.store.answers.clear()
    staying, leaving = small(), small(partition=1)
    here.add(staying, leaving)
    here.plan()
    here.lose(1)
    here.store.answers.set()
    here.settle()
    assert here.served == [staying]


def test_dangerous_decoding_happens_under_a_mark_and_the_request_then_runs_with_others(here: Here) -> None:
    dangerous, ordinary = small(), small(partition=1)
    request = dangerous.decoded
    dangerous.record = replace(dangerous.record, value=Codec().encode_request(request, "requests"))
    dangerous.request, dangerous.decode_under_mark = None, True
    here.add(dangerous, ordinary)
    here.plan()
    assert here.group.marks == {dangerous: Mark(open=True, alone=True)}
    assert dangerous.decoded == request
    here.plan()
    assert here.group.marks == {each: Mark(open=True) for each in (dangerous, ordinary)}
    here.settle()
    assert set(here.served) == {dangerous, ordinary}


def test_a_request_that_waits_for_its_retry_has_no_open_mark(here: Here) -> None:
    here.gate.may_run.clear()
    tried = small()
    here.add(tried)
    here.serve(here.gate.runs.is_set)
    assert here.group.marks[tried].open
    tried.attempts = 1
    here.dispatcher.retry(tried, 30.0)
    here.plan()
    assert here.group.marks[tried] == Mark(attempts=1)
    before = here.group.commits
    here.plan()
    assert here.group.commits == before


def test_nothing_is_marked_alone_while_an_unwanted_batch_still_runs(here: Here) -> None:
    here.gate.may_run.clear()
    here.add(small(partition=1))
    here.serve(here.gate.runs.is_set)
    here.lose(1)
    other = small()
    here.add(other)
    here.plan()
    assert here.group.marks[other] == Mark(open=True)


def test_no_more_requests_start_than_a_checkpoint_has_marks_for(here: Here) -> None:
    here.gate.may_run.clear()
    # A device so fast that the deck is deep, and encoders that take forever.
    here.engine.image_s = 1e-9
    here.add(*(small() for _ in range(3 * MAX_MARKS)))
    for _ in range(30):
        here.plan()
        for batch_id in range(1, 3 * MAX_MARKS):
            here.dispatcher.batch_done(batch_id)
    marked = [mark for mark in here.group.marks.values() if mark.open]
    assert MAX_MARKS - 8 < len(marked) <= MAX_MARKS


@pytest.mark.parametrize("readable", [True, False])
def test_a_convicted_request_is_charged_only_for_a_death_while_it_is_decoded(
    here: Here, readable: bool
) -> None:
    convict = small(suspect=True)
    request = convict.decoded
    if readable:
        convict.record = replace(convict.record, value=Codec().encode_request(request, "requests"))
    convict.request, convict.attempts = None, 3
    here.add(convict)
    here.plan()
    assert here.group.marks[convict] == Mark(3, suspect=True, open=True, alone=True)
    assert here.failed == [convict]
    assert convict.request == (request if readable else None)
    # Its answer cannot be published yet. If the process dies now, the next owner can still decode it.
    here.plan()
    assert here.group.marks[convict] == Mark(3, suspect=True)


def test_a_request_held_back_leaves_no_mark_and_blocks_no_drain(here: Here) -> None:
    here.gate.may_run.clear()
    one, suspect = small(), small(suspect=True)
    here.add(one)
    here.serve(here.gate.runs.is_set)
    one.attempts = 2
    here.dispatcher.withhold(one)
    here.window.exit(one)
    assert not here.window.under_way
    here.plan()
    assert here.group.marks[one] == Mark()
    never_started = small()
    here.dispatcher.withhold(never_started)
    here.add(never_started)
    before = here.group.commits
    here.dispatcher.sweep()
    assert here.group.commits == before
    here.gate.may_run.set()
    here.settle()
    here.gate.may_run.clear()
    here.gate.runs.clear()
    here.add(suspect)
    here.serve(here.gate.runs.is_set)
    here.dispatcher.withhold(suspect)
    here.window.exit(suspect)
    here.plan()
    assert here.group.marks[suspect] == Mark(suspect=True)


def test_a_job_that_waits_is_called_off(here: Here) -> None:
    here.gate.may_run.clear()
    waiting = small()
    here.add(waiting)
    assert here.dispatcher.call_off(waiting)
    assert not here.dispatcher.call_off(waiting)
    here.plan()
    assert here.group.marks == {}


def test_a_job_that_waits_for_its_retry_is_called_off_and_its_mark_removed(here: Here) -> None:
    here.gate.may_run.clear()
    tried = small()
    here.add(tried)
    here.serve(here.gate.runs.is_set)
    tried.attempts = 1
    here.dispatcher.retry(tried, 30.0)
    assert here.dispatcher.call_off(tried)
    assert not len(here.scheduler)
    here.plan()
    assert here.group.marks[tried] == Mark(attempts=1)
    here.dispatcher.resolved(tried)
    here.window.exit(tried)
    here.plan()
    assert not here.window.under_way


@pytest.mark.parametrize("looked_up", [False, True])
def test_of_a_marked_batch_one_is_called_off_and_the_others_run(here: Here, looked_up: bool) -> None:
    here.gate.may_run.clear()
    running = job(width=128, height=64)
    here.add(running)
    here.serve(here.gate.runs.is_set)
    if not looked_up:
        here.store.answers.clear()
    company = [small() for _ in range(4)]
    here.add(*company)
    here.plan()
    if looked_up:
        here.serve(lambda: not here.dispatcher._asked)
    assert {each.stage for each in company} == {Stage.MARKED}
    assert here.dispatcher.call_off(company[1])
    others = [each for each in company if each is not company[1]]
    assert {each.stage for each in others} == {Stage.WAITING}
    assert not any(each.open for each in company)
    here.window.exit(company[1])
    here.store.answers.set()
    here.gate.may_run.set()
    here.settle()
    assert set(here.served) == {running, *others}
    assert len(here.served) == 4
    assert {here.group.marks[each].attempts for each in company} == {0}


def test_what_the_store_had_is_not_run_when_its_companion_is_called_off(here: Here) -> None:
    here.add(small(request_id="same"))
    here.settle()
    here.gate.runs.clear()
    here.gate.may_run.clear()
    here.add(job(width=128, height=64))
    here.serve(here.gate.runs.is_set)
    again, unwanted = small(request_id="same"), small()
    here.publishes = False
    here.add(again, unwanted)
    here.serve(lambda: again in here.served)
    assert here.dispatcher.call_off(unwanted)
    here.window.exit(unwanted)
    here.publishes = True
    here.gate.may_run.set()
    here.settle()
    assert here.served.count(again) == 1
    assert unwanted not in here.served


def test_a_job_that_runs_is_not_called_off(here: Here) -> None:
    here.gate.may_run.clear()
    company = [small() for _ in range(2)]
    here.add(*company)
    here.serve(here.gate.runs.is_set)
    # Whether or not the engine's report has arrived.
    assert company[0].stage in (Stage.MARKED, Stage.GENERATING)
    assert not here.dispatcher.call_off(company[0])
    here.serve(lambda: company[0].stage is Stage.GENERATING)
    assert not here.dispatcher.call_off(company[0])
    assert all(each.open for each in company)
    here.gate.may_run.set()
    here.settle()
    assert set(here.served) == set(company)


def test_a_quarantined_suspect_is_called_off_before_it_is_due(here: Here) -> None:
    suspect, other = small(suspect=True), small()
    here.add(suspect, other)
    assert here.dispatcher.call_off(suspect)
    here.window.exit(suspect)
    assert not here.scheduler.quarantine_due(time.monotonic())
    here.settle()
    assert here.served == [other]
    assert suspect not in here.group.marks


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_an_undecoded_suspect_that_was_cancelled_is_decoded_under_its_mark_and_ends(
    here: Here, cancelled_first: bool
) -> None:
    suspect = small(suspect=True)
    request = suspect.decoded
    suspect.record = replace(suspect.record, value=Codec().encode_request(request, "requests"))
    suspect.request, suspect.attempts = None, 1
    if cancelled_first:
        suspect.cancelled = RequestCancelledError(None, Stage.FETCHED)
    here.add(suspect)
    if not cancelled_first:
        suspect.cancelled = RequestCancelledError(None, Stage.WAITING)
    here.plan()
    assert here.group.marks[suspect] == Mark(1, suspect=True, open=True, alone=True)
    assert here.failed == [suspect]
    assert suspect.decoded == request
    here.plan()
    assert here.group.marks[suspect] == Mark(1, suspect=True)


def test_a_tenant_that_cancels_on_deck_costs_no_other_tenant_its_share(here: Here) -> None:
    here.gate.may_run.clear()
    here.add(job(width=128, height=64))
    here.serve(here.gate.runs.is_set)
    # Something always waits, or the scheduler would start afresh.
    later = small(tenant="later")
    later.not_before = time.monotonic() + 10_000
    here.add(later, small(tenant="patient"))

    def charged() -> float:
        return here.scheduler._tenants["patient"].clock

    for count in range(5):
        restless = small(tenant="restless")
        here.add(restless)
        here.plan()
        assert restless.stage is Stage.MARKED
        if count == 0:
            once = charged()
        assert here.dispatcher.call_off(restless)
        here.window.exit(restless)
    assert charged() <= once
