"""What the outbox does with a job whose terminal event cannot be built or published."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import job, leave
from zimage_consumers.image_worker.group.publish import OutgoingRecord, RefusedRecordError
from zimage_consumers.image_worker.stages.outbox import Outbox
from zimage_consumers.image_worker.stages.terminal import Identity
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Resolution
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.errors import RegistryUnavailableError, SchemaMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Code
from zimage_stream.settings import TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer


@dataclass
class Publication:
    """A session that only records what is published. ``refused``: keys of records that no broker accepts.
    ``takes``: size of the largest record accepted, in bytes."""

    records: list[OutgoingRecord] = field(default_factory=list)
    refused: set[bytes | None] = field(default_factory=set)
    takes: int = 1 << 30

    def publish(self, records: list[OutgoingRecord], checkpoints: Mapping[int, Checkpoint]) -> None:
        too_large = any(record.size > self.takes for record in records)
        if too_large or self.refused & {record.key for record in records}:
            raise RefusedRecordError("message too large")
        self.records += records


@dataclass
class Publishing:
    """An outbox, the session it publishes on, and what it could not publish."""

    jobs: list[Job]
    code: Code = Code.EXPIRED
    health: Health = field(default_factory=Health)
    withheld: list[Job] = field(default_factory=list)
    codec: Codec = field(default_factory=Codec)

    def __post_init__(self) -> None:
        self.health.set_started()
        metrics, tracer = Metrics(CollectorRegistry()), create_tracer(False, "slot")
        self.outbox = Outbox(
            TopicSettings(),
            self.codec,
            Identity("m", "", "slot"),
            self.health,
            metrics,
            tracer,
        )
        assignment = Assignment(0, Ledger(Checkpoint(min(each.record.offset for each in self.jobs))))
        self.session: Any = Publication()
        for each in self.jobs:
            each.assignment = assignment
            assignment.ledger.observe(each.record.offset)
            self.outbox.add(Resolution(each, code=self.code))

    def publish(self) -> list[Job]:
        """Publish once. Returns the jobs whose terminal events were published."""
        published = self.outbox.publish(self.session)
        self.withheld += published.withheld
        return list(published.out)

    def assert_told(self, bad: Job) -> None:
        """Assert that only this job was withheld, and that the worker reports it as not ready."""
        assert self.withheld == [bad]
        ready, reasons = self.health.ready()
        assert not ready
        place = f"offset {bad.record.offset} in partition 0 cannot be published"
        assert any(place in reason for reason in reasons)


def test_a_terminal_event_that_cannot_be_built_is_withheld_alone() -> None:
    good, bad = job(), job(batch_id=5)
    here = Publishing([good, bad])
    assert here.publish() == []
    assert here.publish() == [good]
    assert len(here.session.records) == 1
    here.assert_told(bad)


@given(st.integers(1, 8), st.data())
def test_a_record_that_the_brokers_refuse_is_withheld_alone(count: int, data: st.DataObject) -> None:
    jobs = [job() for _ in range(count)]
    bad = jobs[data.draw(st.integers(0, count - 1))]
    here = Publishing(jobs)
    here.session.refused = {bad.request and bad.request.request_id.encode()}
    out = [each for _ in range(count + 2) for each in here.publish()]
    assert set(out) == set(jobs) - {bad}
    assert len(here.session.records) == count - 1
    here.assert_told(bad)


def test_a_refused_record_is_no_longer_reported_once_its_partition_is_gone() -> None:
    jobs = [job(), job()]
    here = Publishing(jobs)
    here.session.refused = {each.request and each.request.request_id.encode() for each in jobs}
    while here.outbox:
        here.publish()
    (reason,) = here.health.ready()[1]
    assert reason.endswith("(one of 2 in this partition)")
    here.health.release_partitions({1})
    assert not here.health.ready()[0]
    here.health.release_partitions({0})
    assert here.health.ready() == (True, [])


def test_a_job_whose_partition_is_gone_is_not_published() -> None:
    here = Publishing([job(), job()])
    leave(here.jobs, {0})
    assert here.publish() == []
    assert len(here.outbox) == 0


class Unregistered(Codec):
    """A codec whose registry lacks the results schema until it is added."""

    def __init__(self, problem: Exception) -> None:
        super().__init__()
        self.problem: Exception | None = problem

    def prepare_results(self, topic: str) -> None:
        if self.problem is not None:
            raise self.problem


@pytest.mark.parametrize(
    "problem", [SchemaMissingError("not registered"), RegistryUnavailableError("refused to connect")]
)
def test_without_the_results_schema_results_are_kept_and_the_outage_is_reported(problem: Exception) -> None:
    codec = Unregistered(problem)
    here = Publishing([job(), job()], codec=codec)
    assert here.publish() == []
    ready, (reason,) = here.health.ready()
    assert not ready
    assert str(problem) in reason
    codec.problem = None
    deadline = time.monotonic() + 120
    while not (out := here.publish()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert set(out) == set(here.jobs)


def test_a_dead_letter_that_the_brokers_refuse_is_published_in_cut_form() -> None:
    large = job()
    large.request = None
    large.record = replace(large.record, value=b"v" * 1_000_000)
    here = Publishing([large], Code.UNDECODABLE)
    here.session.takes = 900_000
    assert [each for _ in range(3) for each in here.publish()] == [large]
    (letter,) = here.session.records
    assert dict(letter.headers)["zimage.value-bytes"] == b"1000000"
    assert here.withheld == []
    assert here.health.ready() == (True, [])
