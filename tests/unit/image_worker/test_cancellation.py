"""A cancelled request on the message path, without a broker: at every stage it ends once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from PIL.Image import Image
from prometheus_client import CollectorRegistry

from zimage_consumers.image_worker import message_path
from zimage_consumers.image_worker.group.publish import OutgoingRecord
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.message_path import MessagePath
from zimage_consumers.image_worker.stages.breaker import LIMIT_PER_SUBJECT
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Stage
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.engines.base import ImageSpec, Previews, Stepped, never
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.errors import GenerationCancelledError
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Code, ImageResult, Status
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings
from zimage_stream.simulated_faults import Fault
from zimage_stream.stores.directory import DirectoryStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer

SIDE = 64
CODEC = Codec()
NOBODY = "nobody wants"


def image_request(prompt: str = "a heron", **fields: Any) -> PromptRequest:
    size: dict[str, Any] = {"width": SIDE, "height": SIDE}
    return PromptRequest(prompt=prompt, **size | fields)


class Gated(SimulatedEngine):
    """Generates when allowed to. Prompts with ``fails`` fail."""

    def __init__(self) -> None:
        super().__init__(0.0, {"fails": Fault.parse("raise")})
        self.batches: list[list[str]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.heeds = True
        """Looks between two steps whether the images are still wanted."""

    @property
    def begun(self) -> list[str]:
        return [prompt for batch in self.batches for prompt in batch]

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        self.batches.append([spec.prompt for spec in specs])
        while not self.may_run.wait(0.002):
            if self.heeds and cancelled():
                raise GenerationCancelledError(NOBODY)
        return super().generate(specs)


class Desk:
    """Stands in for a session of one partition, and keeps what is committed."""

    stalled = 0

    def __init__(self, path: MessagePath, checkpoint: Checkpoint) -> None:
        self._path = path
        self.assignment = Assignment(0, Ledger(checkpoint), informed=True)
        path.window.begin(self.assignment)
        self._log: deque[Record] = deque()
        self._said: list[int] = []
        self._ahead: list[Record] = []
        self._next = checkpoint.base
        self.results: list[ImageResult] = []
        self.dead: list[OutgoingRecord] = []

    # -- what a test does

    def append(self, request: PromptRequest | bytes) -> Record:
        """Put a record at the end of the log."""
        value = request if isinstance(request, bytes) else CODEC.encode_request(request, "requests")
        record = Record("requests", 0, self._next, b"key", value, (), datetime.now(UTC))
        self._next += 1
        self._log.append(record)
        return record

    def cancel(self, record: Record, reason: str | None = None) -> None:
        self.assignment.cancelled[record.offset] = reason
        self._said.append(record.offset)

    def deliver_ahead(self, record: Record) -> None:
        assert self.assignment.ledger.take_ahead(record.offset)
        self._ahead.append(record)

    def job(self, record: Record) -> Job:
        job = self._path.window.find(0, record.offset)
        assert job is not None
        return job

    def stage(self, record: Record) -> Stage | None:
        job = self._path.window.find(0, record.offset)
        return job.stage if job else None

    def result(self, record: Record) -> ImageResult | None:
        """The only result of a record."""
        found = [each for each in self.results if each.source.offset == record.offset]
        assert len(found) <= 1, "two terminal events"
        return found[0] if found else None

    def mark(self, record: Record) -> Mark:
        return self.assignment.ledger.mark(record.offset)

    # -- what the message path sees

    @property
    def cancellations(self) -> Desk:
        return self

    @property
    def partitions(self) -> Desk:
        return self

    @property
    def ahead(self) -> Desk:
        return self

    def read(self) -> list[tuple[Assignment, int]]:
        said, self._said = self._said, []
        return [(self.assignment, offset) for offset in said]

    def fetch(self) -> list[Record]:
        found, self._ahead = self._ahead, []
        return found

    def unresolved(self) -> dict[int, int]:
        return {}

    def claim(self) -> None:
        """Do nothing: the partition is claimed."""

    def probe(self) -> None:
        """Do nothing: Kafka is never down."""

    def pause_only(self, to_pause: set[int]) -> None:
        """Do nothing: the window never fills."""

    def poll(self, wait_s: float) -> Record | None:
        return self._log.popleft() if self._log else None

    def commit_marks(self, marks: Mapping[Job, Mark]) -> None:
        ledger = self.assignment.ledger
        ledger.adopt(ledger.after(marks={job.record.offset: mark for job, mark in marks.items()}))

    def publish(self, records: list[OutgoingRecord], checkpoints: Mapping[int, Checkpoint]) -> None:
        for record in records:
            if record.topic == "zimage.results":
                self.results.append(CODEC.decode_result(record.value))
            else:
                self.dead.append(record)
        self.assignment.ledger.adopt(checkpoints[0])


class Here:
    """A message path with a gated engine, a directory store and a desk."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, **worker: Any) -> None:
        self.engine = Gated()
        self.health = Health()
        self.registry = CollectorRegistry()
        self.store = DirectoryStore(folder)
        self.store.create()
        self.folder = folder
        self.path = MessagePath(
            Settings.model_validate({"engine": {"max_batch": 4}, "worker": worker}),
            self.engine,
            self.store,
            CODEC,
            slot="slot",
            health=self.health,
            metrics=Metrics(self.registry),
            tracer=create_tracer(False, "slot"),
        )
        self.health.set_started()
        self.health.up("kafka")
        self.desk = Desk(self.path, checkpoint)
        self.path.engine.start()

    def close(self) -> None:
        self.engine.may_run.set()
        self.path.close()
        self.path.engine.stop()
        self.path.engine.join(120)

    def turn(self) -> None:
        self.path.turn(cast(Session, self.desk))

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def ended(self, *records: Record) -> list[ImageResult]:
        """The results of these records, once all have one."""
        self.until(lambda: all(self.desk.result(each) for each in records))
        return [cast(ImageResult, self.desk.result(each)) for each in records]

    def end(self, record: Record) -> ImageResult:
        """The result of this record, once it has one."""
        return self.ended(record)[0]

    def settle(self) -> None:
        """Serve until nothing is left in the window, and a little longer."""
        self.until(lambda: not any(True for _ in self.path.window.jobs(*Stage)))
        for _ in range(20):
            self.turn()

    def at(self, stage: Stage, *records: Record) -> None:
        self.until(lambda: all(self.desk.stage(each) is stage for each in records))

    def counted(self) -> dict[str, float]:
        """What ``zimage_cancelled_total`` says, by stage."""
        found = {
            stage.name.lower(): self.registry.get_sample_value(
                "zimage_cancelled_total", {"stage": stage.name.lower()}
            )
            for stage in Stage
        }
        return {stage: value for stage, value in found.items() if value}

    def stored(self) -> int:
        return sum(1 for each in self.folder.rglob("*.png"))


@pytest.fixture
def make_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Here]]:
    made: list[Here] = []
    # No operator releases anything.
    monkeypatch.setattr(message_path, "read_releases", lambda settings: {})

    def make(checkpoint: Checkpoint | None = None, **worker: Any) -> Here:
        made.append(Here(tmp_path, checkpoint or Checkpoint(0), **worker))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def here(make_here: Callable[..., Here]) -> Here:
    return make_here()


def assert_cancelled(result: ImageResult | None, attempts: int = 0) -> None:
    assert result is not None
    assert (result.status, result.attempts, result.image) == (Status.CANCELLED, attempts, None)
    assert result.error is not None
    assert result.error.code == Code.CANCELLED


def test_what_is_cancelled_before_it_is_fetched_ends_without_the_device(here: Here) -> None:
    one, other = here.desk.append(image_request("one")), here.desk.append(image_request("other"))
    here.desk.cancel(one, "another word")
    cancelled, served = here.ended(one, other)
    assert_cancelled(cancelled)
    assert cancelled.error is not None
    assert cancelled.error.message == "it was cancelled: another word"
    assert served.status is Status.SUCCEEDED
    here.settle()
    assert here.engine.begun == ["other"]
    assert here.desk.dead == []
    assert here.counted() == {"fetched": 1}
    assert here.desk.assignment.ledger.checkpoint.base == 2
    assert here.desk.assignment.cancelled == {}


def test_a_cancelled_request_counts_as_cancelled(here: Here) -> None:
    here.desk.cancel(here.desk.append(image_request()))
    here.until(lambda: here.desk.results)
    here.settle()
    assert here.registry.get_sample_value("zimage_results_total", {"status": "CANCELLED"}) == 1
    assert not here.registry.get_sample_value("zimage_results_total", {"status": "EXPIRED"})


def test_what_waits_ends_while_the_device_is_busy(here: Here) -> None:
    here.engine.may_run.clear()
    running = here.desk.append(image_request("running", width=128))
    # The deck is full with one batch of another size; the last ones wait.
    deck = [here.desk.append(image_request(f"deck {number}")) for number in range(4)]
    waiting = [here.desk.append(image_request(f"waiting {number}", height=256)) for number in range(9)]
    here.until(lambda: here.desk.stage(running) is Stage.GENERATING)
    here.at(Stage.WAITING, *waiting[-2:])
    here.desk.cancel(waiting[-1])
    assert_cancelled(here.end(waiting[-1]))
    assert not here.desk.result(running)
    here.engine.may_run.set()
    served = here.ended(running, *deck, *waiting[:-1])
    assert {each.status for each in served} == {Status.SUCCEEDED}
    assert "waiting 8" not in here.engine.begun


def test_on_deck_in_company_it_ends_and_the_others_run(here: Here) -> None:
    here.engine.may_run.clear()
    running = here.desk.append(image_request("running", width=128))
    here.at(Stage.GENERATING, running)
    deck = [here.desk.append(image_request(f"deck {number}")) for number in range(4)]
    here.at(Stage.MARKED, *deck)
    here.desk.cancel(deck[1])
    assert_cancelled(here.end(deck[1]))
    assert not here.desk.result(running)
    here.engine.may_run.set()
    others = [each for each in deck if each is not deck[1]]
    served = here.ended(running, *others)
    assert {(each.status, each.attempts) for each in served} == {(Status.SUCCEEDED, 1)}
    assert "deck 1" not in here.engine.begun
    assert here.desk.mark(deck[1]) == Mark()
    here.settle()
    assert not here.desk.assignment.ledger.checkpoint.marks


def test_all_of_a_batch_on_deck_can_be_cancelled_at_once(here: Here) -> None:
    here.engine.may_run.clear()
    running = here.desk.append(image_request("running", width=128))
    here.at(Stage.GENERATING, running)
    deck = [here.desk.append(image_request(f"deck {number}")) for number in range(4)]
    here.at(Stage.MARKED, *deck)
    for each in deck:
        here.desk.cancel(each)
    for result in here.ended(*deck):
        assert_cancelled(result)
    here.engine.may_run.set()
    here.settle()
    assert here.engine.begun == ["running"]
    assert here.stored() == 1


def test_what_runs_alone_ends_between_two_steps_and_is_not_charged(here: Here) -> None:
    here.engine.may_run.clear()
    one = here.desk.append(image_request())
    here.at(Stage.GENERATING, one)
    here.desk.cancel(one)
    assert_cancelled(here.end(one))
    assert here.counted() == {"generating": 1}
    here.engine.may_run.set()
    here.settle()
    assert here.stored() == 0


def test_in_company_it_ends_and_the_others_are_neither_charged_nor_begun_again(here: Here) -> None:
    here.engine.may_run.clear()
    batch = [here.desk.append(image_request(f"in company {number}")) for number in range(4)]
    here.at(Stage.GENERATING, *batch)
    here.desk.cancel(batch[2])
    here.until(lambda: here.desk.job(batch[2]).cancelled)
    here.engine.may_run.set()
    results = here.ended(*batch)
    assert_cancelled(results.pop(2))
    assert {(each.status, each.attempts) for each in results} == {(Status.SUCCEEDED, 1)}
    assert here.stored() == 3
    assert sorted(here.engine.begun) == [f"in company {number}" for number in range(4)]


def test_a_batch_that_nobody_wants_ends_while_the_device_would_go_on(here: Here) -> None:
    here.engine.may_run.clear()
    batch = [here.desk.append(image_request(f"in company {number}")) for number in range(4)]
    here.at(Stage.GENERATING, *batch)
    for each in batch:
        here.desk.cancel(each)
    for result in here.ended(*batch):
        assert_cancelled(result)
    assert not here.engine.may_run.is_set()


def test_one_that_fails_meanwhile_ends_as_cancelled_uncharged_and_is_not_tried_again(here: Here) -> None:
    here.engine.heeds = False
    here.engine.may_run.clear()
    one = here.desk.append(image_request("this fails"))
    here.at(Stage.GENERATING, one)
    here.desk.cancel(one)
    here.until(lambda: here.desk.job(one).cancelled)
    here.engine.may_run.set()
    assert_cancelled(here.end(one))
    here.settle()
    assert here.engine.begun.count("this fails") == 1
    assert here.desk.dead == []


def test_one_that_waits_for_its_retry_ends_at_once(here: Here) -> None:
    one = here.desk.append(image_request("this fails"))
    here.until(lambda: here.desk.stage(one) is Stage.WAITING and here.desk.job(one).attempts == 1)
    # It would not be due within the test.
    here.desk.job(one).not_before = time.monotonic() + 10_000
    here.desk.cancel(one)
    assert_cancelled(here.end(one), attempts=1)
    here.settle()
    assert here.engine.begun.count("this fails") == 1
    assert here.desk.dead == []
    assert not here.desk.assignment.ledger.checkpoint.marks


def test_one_that_is_held_back_ends_and_is_no_longer_reported(make_here: Callable[..., Here]) -> None:
    here = make_here(max_attempts=1)
    flood = [here.desk.append(image_request(f"{number} fails")) for number in range(LIMIT_PER_SUBJECT + 1)]

    def held_back() -> list[Record]:
        return [each for each in flood if here.desk.stage(each) is Stage.HELD_BACK]

    here.until(held_back)
    (held,) = held_back()
    assert not here.health.ready()[0]
    here.desk.cancel(held)
    assert_cancelled(here.end(held), attempts=1)
    assert here.health.ready() == (True, [])
    assert len(here.desk.dead) == LIMIT_PER_SUBJECT
    assert here.path.window.held_back_size == 0
    assert here.counted() == {"held_back": 1}


def test_an_undecodable_record_is_a_dead_letter_whoever_cancels_it(here: Here) -> None:
    one = here.desk.append(b"no request")
    here.desk.cancel(one)
    here.until(lambda: here.desk.dead)
    here.settle()
    assert here.desk.results == []
    assert len(here.desk.dead) == 1
    assert here.counted() == {}
    assert here.desk.assignment.cancelled == {}


def test_an_invalid_request_that_was_cancelled_ends_once(here: Here) -> None:
    one = here.desk.append(image_request(steps=0))
    here.desk.cancel(one)
    assert_cancelled(here.end(one))
    here.settle()
    assert here.desk.dead == []


def suspected(attempts: int = 0) -> Checkpoint:
    """The checkpoint of a partition whose first request was running when its worker died."""
    return Checkpoint(0, marks={0: Mark(attempts, suspect=True)})


def test_a_suspect_ends_under_its_own_mark_once_it_is_decoded(make_here: Callable[..., Here]) -> None:
    here = make_here(suspected(2))
    one, other = here.desk.append(image_request("one")), here.desk.append(image_request("other"))
    here.desk.cancel(one)
    assert_cancelled(here.end(one), attempts=2)
    assert here.ended(other)[0].status is Status.SUCCEEDED
    here.settle()
    assert here.engine.begun == ["other"]
    assert not here.desk.assignment.ledger.checkpoint.marks


def test_a_suspect_that_runs_alone_ends_between_two_steps(make_here: Callable[..., Here]) -> None:
    here = make_here(suspected())
    one = here.desk.append(image_request("one"))
    # The known-good image, which a suspect's batch begins with, is made meanwhile.
    here.engine.may_run.clear()
    here.at(Stage.GENERATING, one)
    here.desk.cancel(one)
    here.until(lambda: here.desk.job(one).cancelled)
    here.engine.may_run.set()
    assert_cancelled(here.end(one))
    here.settle()
    assert here.stored() == 0


def test_a_convict_that_was_cancelled_ends_once_and_never_runs(make_here: Callable[..., Here]) -> None:
    here = make_here(suspected(3))
    one = here.desk.append(image_request("one"))
    here.desk.cancel(one)
    assert_cancelled(here.end(one), attempts=3)
    here.settle()
    assert here.engine.begun == []


def test_what_was_taken_ahead_is_not_taken_again_in_its_turn(here: Here) -> None:
    here.engine.may_run.clear()
    first = here.desk.append(image_request("first"))
    here.at(Stage.GENERATING, first)
    middle = [here.desk.append(image_request(f"middle {number}")) for number in range(5)]
    last = here.desk.append(image_request("last"))
    withheld, here.desk._log = here.desk._log, deque()
    here.desk.cancel(last)
    here.desk.deliver_ahead(last)
    assert_cancelled(here.end(last))
    assert here.desk.assignment.ledger.checkpoint.base == 0
    here.desk._log = withheld
    here.engine.may_run.set()
    here.ended(first, *middle)
    here.settle()
    # ``result`` fails where there are two.
    assert_cancelled(here.desk.result(last))
    assert here.desk.assignment.ledger.checkpoint.base == 7


def test_its_turn_comes_while_what_was_taken_ahead_is_not_published(here: Here) -> None:
    first, last = here.desk.append(image_request("first")), here.desk.append(image_request("last"))
    here.desk.cancel(last)
    here.desk.deliver_ahead(last)
    here.ended(first, last)
    here.settle()
    assert_cancelled(here.desk.result(last))
    assert here.desk.assignment.ledger.checkpoint.base == 2


def test_another_record_with_the_same_id_is_served(here: Here) -> None:
    here.engine.may_run.clear()
    busy = here.desk.append(image_request("busy", width=128))
    here.at(Stage.GENERATING, busy)
    one = here.desk.append(image_request(request_id="same"))
    again = here.desk.append(image_request(request_id="same"))
    here.until(lambda: here.desk.stage(again) in (Stage.WAITING, Stage.MARKED))
    here.desk.cancel(one)
    here.end(one)
    here.engine.may_run.set()
    cancelled, served = here.ended(one, again)
    assert_cancelled(cancelled)
    assert served.status is Status.SUCCEEDED


def test_a_cancellation_that_comes_after_the_end_changes_nothing(here: Here) -> None:
    one = here.desk.append(image_request())
    here.ended(one)
    here.desk.cancel(one)
    here.settle()
    assert [each.status for each in here.desk.results] == [Status.SUCCEEDED]


def test_a_repeated_cancellation_ends_it_once(here: Here) -> None:
    here.engine.may_run.clear()
    one = here.desk.append(image_request())
    here.at(Stage.GENERATING, one)
    for _ in range(3):
        here.desk.cancel(one, "again")
        here.turn()
    here.engine.may_run.set()
    here.settle()
    assert_cancelled(here.desk.result(one))
    assert len(here.desk.results) == 1


def test_nothing_is_published_of_a_partition_that_left_in_between(here: Here) -> None:
    here.engine.may_run.clear()
    one = here.desk.append(image_request())
    here.at(Stage.GENERATING, one)
    here.desk.cancel(one)
    here.path.window.leave({0})
    here.engine.may_run.set()
    for _ in range(50):
        here.turn()
    assert here.desk.results == []
    assert here.counted() == {}


def test_what_expires_and_is_cancelled_ends_once(here: Here) -> None:
    here.engine.may_run.clear()
    busy = here.desk.append(image_request(width=128))
    here.at(Stage.GENERATING, busy)
    late = replace(image_request("late"), expires_at=datetime.now(UTC))
    one = here.desk.append(late)
    here.desk.cancel(one)
    (result,) = here.ended(one)
    assert result.status in (Status.CANCELLED, Status.EXPIRED)
    here.engine.may_run.set()
    here.settle()
    assert here.desk.result(one)
