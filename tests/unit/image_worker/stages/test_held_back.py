"""What is held back, for how long, and how it is reported."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.stages.breaker import LIMIT_PER_SUBJECT
from zimage_consumers.image_worker.stages.held_back import MAX_HELD_BACK_BYTES, HeldBack, Releases
from zimage_consumers.image_worker.window.jobs import Job, Resolution, Timings
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.errors import BrokerUnavailableError
from zimage_stream.events.image_result import Code
from zimage_stream.telemetry.health import Health


def failed(code: Code = Code.GENERATION_FAILED, partition: int = 0, tenant: str = "flood") -> Resolution:
    return Resolution(
        job(partition, tenant=tenant), code=code, cause=ValueError("odd"), deployment_fault=True
    )


@dataclass
class Here:
    """What is held back, and which jobs are retried."""

    read: Callable[[], dict[Code, float]] = dict
    capacity: int = 1 << 20
    health: Health = field(default_factory=Health)
    again: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.health.set_started()
        self.window = Window(16_384, 64 << 20)
        self.held_back = HeldBack(self.window, self.capacity, Releases(self.read), self.health)

    def flood(self, count: int, code: Code = Code.GENERATION_FAILED, partition: int = 0) -> list[Job]:
        """Those of this many failed jobs that are held back."""
        all_ = [self.enter(failed(code, partition)) for _ in range(count)]
        return [each.job for each in all_ if self.held_back.holds_back(each)]

    def enter(self, resolution: Resolution) -> Resolution:
        """Put the resolution's job into the window."""
        job = resolution.job
        job.assignment = self.window.assignments.setdefault(job.record.partition, job.assignment)
        self.window.enter(job)
        return resolution

    def lose(self, partition: int) -> None:
        self.window.leave({partition})
        self.held_back.sweep()


def made() -> Job:
    """A job whose image was generated and stored just now."""
    one = job(tenant="other")
    one.timings = Timings(generate_ms=1.0)
    return one


def test_a_freshly_generated_image_causes_failed_requests_to_be_retried() -> None:
    here = Here()
    held = here.flood(120)
    assert len(held) == 120 - LIMIT_PER_SUBJECT
    ready, (reason,) = here.health.ready()
    assert not ready
    assert reason.startswith("70 requests are held back")
    assert "zimage dead-letters release --code GENERATION_FAILED" in reason
    here.again += here.held_back.succeeded(made())
    assert here.again == held[:LIMIT_PER_SUBJECT]
    here.again += here.held_back.succeeded(made())
    assert here.again == held
    assert here.health.ready() == (True, [])


def test_a_request_that_fails_again_is_not_held_back_again() -> None:
    here = Here()
    (held,) = here.flood(LIMIT_PER_SUBJECT + 1)
    held.last_chance = True
    assert not here.held_back.holds_back(Resolution(held, code=Code.GENERATION_FAILED, deployment_fault=True))


def test_a_decoded_record_releases_only_requests_that_lacked_a_schema() -> None:
    here = Here()
    generation = here.flood(60)
    schema = [failed(Code.UNKNOWN_SCHEMA) for _ in range(60)]
    for each in schema:
        each.job.request = None
        each.job.record = replace(each.job.record, value=b"\0\0\0\0\7" + each.job.record.offset.to_bytes(8))
    unread = [each.job for each in schema if here.held_back.holds_back(each)]
    assert len(unread) == 60 - LIMIT_PER_SUBJECT
    # Its image was stored before, so it shows nothing about engine and store.
    here.again += here.held_back.succeeded(job())
    assert here.again == []
    here.again += here.held_back.record_decoded()
    assert here.again == unread
    assert here.health.ready()[1][0].startswith(f"{len(generation)} requests are held back")


def test_requests_of_partitions_that_are_gone_are_no_longer_reported() -> None:
    here = Here(capacity=15 * job().size)
    here.flood(60, partition=3)
    crowded = [here.held_back.crowded]
    here.flood(10, partition=4)
    crowded.append(here.held_back.crowded)
    here.lose(4)
    crowded.append(here.held_back.crowded)
    assert crowded == [False, True, False]
    assert here.health.ready()[1][0].startswith("10 requests are held back")
    here.lose(3)
    assert here.health.ready() == (True, [])
    here.again += here.held_back.succeeded(made())
    assert here.again == []


def test_a_record_larger_than_any_valid_request_is_not_held_back() -> None:
    here = Here()
    here.flood(60)
    large = failed(Code.UNKNOWN_SCHEMA, tenant="other")
    large.job.record = replace(large.job.record, value=bytes(MAX_HELD_BACK_BYTES))
    assert not any(here.held_back.holds_back(large) for _ in range(1_000))


def test_requests_that_an_operator_releases_are_retried_and_no_more_are_held_back() -> None:
    releases: dict[Code, float] = {}
    here = Here(lambda: dict(releases))
    held = here.flood(60)
    other = here.flood(60, Code.STORE_REJECTED)
    here.again += here.held_back.released()
    assert here.again == []
    releases[Code.GENERATION_FAILED] = time.time() + 3_600
    releases[Code.STORE_REJECTED] = time.time() - 1
    deadline = time.monotonic() + 120
    while not here.again:
        assert time.monotonic() < deadline
        here.again += here.held_back.released()
        time.sleep(0.05)
    assert here.again == held
    assert here.flood(60) == []
    assert here.health.ready()[1][0].startswith(f"{len(other)} requests are held back")


def test_releases_are_read_again_after_a_broker_failed_to_return_them() -> None:
    asked: list[int] = []

    def read() -> dict[Code, float]:
        asked.append(1)
        if len(asked) == 1:
            raise BrokerUnavailableError("Kafka does not answer")
        return {Code.GENERATION_FAILED: time.time() + 3_600}

    here = Here(read)
    held = here.flood(60)
    deadline = time.monotonic() + 120
    while not here.again:
        assert time.monotonic() < deadline
        here.again += here.held_back.released()
        time.sleep(0.05)
    assert here.again == held
