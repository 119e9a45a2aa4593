"""The scheduler: every job gets its turn, in a fair order, and none is forgotten or run twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.image_worker.jobs import SENT, job, leave
from zimage_consumers.image_worker.device.batching import BatchLimits, largest_batch, shape_of
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.window.jobs import Job


def drain(scheduler: Scheduler) -> list[list[Job]]:
    batches = []
    while batch := scheduler.pop_batch(now=0.0):
        batches.append(batch)
    return batches


jobs = st.builds(
    job,
    partition=st.integers(0, 3),
    tenant=st.sampled_from(["a", "b", "c", "d"]),
    width=st.sampled_from([256, 512, 1024]),
    priority=st.integers(-10, 10),
)


class TestEveryJob:
    @given(st.lists(jobs, max_size=40))
    def test_runs_exactly_once_in_batches_of_one_shape_that_fit(self, waiting: list[Job]) -> None:
        scheduler = Scheduler()
        for one in waiting:
            scheduler.add(one)
        batches = drain(scheduler)
        assert sorted(map(id, (j for batch in batches for j in batch))) == sorted(map(id, waiting))
        for batch in batches:
            assert len({shape_of(j.decoded, j.tokens) for j in batch}) == 1
            assert len(batch) <= largest_batch(batch[0].decoded.width, batch[0].decoded.height, 8)
        assert len(scheduler) == 0

    @given(st.lists(jobs, max_size=30), st.sets(st.integers(0, 3)))
    def test_of_a_partition_given_up_never_runs(self, waiting: list[Job], gone: set[int]) -> None:
        scheduler = Scheduler()
        for one in waiting:
            scheduler.add(one)
        leave(waiting, gone)
        scheduler.sweep()
        run = [j for batch in drain(scheduler) for j in batch]
        assert sorted(map(id, run)) == sorted(id(j) for j in waiting if j.record.partition not in gone)


class TestFairness:
    def test_a_light_tenant_does_not_wait_behind_a_heavy_one(self) -> None:
        scheduler = Scheduler()
        for _ in range(1_000):
            scheduler.add(job(tenant="heavy"))
        for _ in range(10):
            scheduler.pop_batch(0.0)
        light = job(tenant="light")
        scheduler.add(light)
        assert light in scheduler.pop_batch(0.0) + scheduler.pop_batch(0.0)

    def test_shares_follow_the_weights(self) -> None:
        scheduler = Scheduler({"gold": 3.0})
        for _ in range(400):
            scheduler.add(job(tenant="gold"))
            scheduler.add(job(tenant="plain"))
        first = [scheduler.pop_batch(0.0)[0].decoded.tenant for _ in range(200)]
        assert abs(first.count("gold") - 150) <= 2

    def test_a_tenant_whose_requests_fit_others_batches_gets_no_more_than_its_share(self) -> None:
        scheduler = Scheduler()
        for _ in range(300):
            scheduler.add(job(tenant="mixed", width=64, height=64))
            scheduler.add(job(tenant="mixed", width=512, height=512))
            scheduler.add(job(tenant="companion", width=512, height=512))
        got = Counter[str]()
        for _ in range(200):
            for one in scheduler.pop_batch(0.0):
                got[one.decoded.tenant] += one.decoded.width * one.decoded.height
        assert abs(got["mixed"] - got["companion"]) <= 8 * 512 * 512

    def test_cost_counts_rather_than_the_number_of_requests(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        for _ in range(100):
            scheduler.add(job(tenant="large", width=1024, height=1024))
            scheduler.add(job(tenant="small", width=512, height=512))
        first = [scheduler.pop_batch(0.0)[0].decoded.tenant for _ in range(50)]
        assert abs(first.count("small") - 40) <= 1

    def test_submitting_one_request_at_a_time_does_not_jump_the_queue(self) -> None:
        scheduler = Scheduler()
        for _ in range(200):
            scheduler.add(job(tenant="patient"))
        served = 0
        scheduler.add(job(tenant="eager"))
        for _ in range(100):
            batch = scheduler.pop_batch(0.0)
            if batch[0].decoded.tenant == "eager":
                served += 1
                scheduler.add(job(tenant="eager"))
        assert served <= 51

    def test_an_idle_tenant_accumulates_no_credit(self) -> None:
        scheduler = Scheduler()
        for _ in range(300):
            scheduler.add(job(tenant="steady"))
        for _ in range(100):
            scheduler.pop_batch(0.0)
        for _ in range(100):
            scheduler.add(job(tenant="late"))
        first = [scheduler.pop_batch(0.0)[0].decoded.tenant for _ in range(100)]
        assert abs(first.count("late") - 50) <= 1


class TestWithinATenant:
    def test_priority_then_expiry_then_arrival(self) -> None:
        scheduler = Scheduler()
        late = job(expires_at=SENT + timedelta(hours=2))
        soon = job(expires_at=SENT + timedelta(hours=1))
        first, second, urgent = job(), job(), job(priority=5)
        for one in (first, late, second, soon, urgent):
            scheduler.add(one)
        assert [batch[0] for batch in drain(scheduler)] == [urgent, soon, late, first, second]

    def test_a_job_that_comes_back_keeps_its_place(self) -> None:
        scheduler = Scheduler()
        first, second = job(), job()
        scheduler.add(first)
        scheduler.add(second)
        scheduler.add(scheduler.pop_batch(0.0)[0])
        assert scheduler.pop_batch(0.0) == [first]


class TestExpiry:
    def test_pops_exactly_the_expired_jobs(self) -> None:
        scheduler = Scheduler()
        gone = job(expires_at=SENT)
        kept = job(expires_at=SENT + timedelta(seconds=2))
        scheduler.add(gone)
        scheduler.add(kept)
        assert scheduler.pop_expired(SENT + timedelta(seconds=1)) == [gone]
        assert drain(scheduler) == [[kept]]

    def test_a_request_that_was_started_does_not_expire(self) -> None:
        scheduler = Scheduler()
        scheduler.add(job(expires_at=SENT, ever_started=True))
        assert scheduler.pop_expired(SENT + timedelta(days=1)) == []

    def test_a_request_that_is_back_for_its_retry_does_not_expire(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        again, other = job(expires_at=SENT), job()
        scheduler.add(again)
        scheduler.add(other)
        assert scheduler.pop_batch(0.0) == [again]
        again.ever_started = True
        scheduler.add(again)
        assert scheduler.pop_expired(SENT + timedelta(days=1)) == []
        assert drain(scheduler) == [[again], [other]]


def entries(scheduler: Scheduler) -> int:
    """Total number of entries that the scheduler keeps."""
    kept = [*vars(scheduler).values(), *(tenant.queue for tenant in scheduler._tenants.values())]
    return sum(len(each) for each in kept if isinstance(each, Sized))


class TestMemory:
    """With something always waiting, entries of jobs that have left do not pile up."""

    ROUNDS, BOUND = 20_000, 600

    def test_of_jobs_served_long_before_they_expire(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        scheduler.add(job())
        for _ in range(self.ROUNDS):
            scheduler.add(job(expires_at=SENT + timedelta(days=7)))
            assert scheduler.pop_batch(0.0)
            assert scheduler.pop_expired(SENT) == []
        assert len(scheduler) == 1
        assert entries(scheduler) < self.BOUND

    def test_of_jobs_that_expired_behind_higher_priorities(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        scheduler.add(job(priority=1))
        for _ in range(self.ROUNDS):
            scheduler.add(job(priority=1))
            scheduler.add(job(expires_at=SENT))
            assert len(scheduler.pop_expired(SENT)) == 1
            assert scheduler.pop_batch(0.0)
        assert len(scheduler) == 1
        assert entries(scheduler) < self.BOUND

    @pytest.mark.parametrize(("suspect", "not_before"), [(False, 0.0), (False, 1.0), (True, 0.0)])
    def test_of_partitions_given_up(self, suspect: bool, not_before: float) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        kept = job(priority=1)
        scheduler.add(kept)
        for _ in range(self.ROUNDS):
            gone = job(partition=1, suspect=suspect)
            gone.not_before = not_before
            scheduler.add(gone)
            leave([gone], {1})
            scheduler.sweep()
        assert entries(scheduler) < self.BOUND
        assert drain(scheduler) == [[kept]]

    def test_of_jobs_that_come_back_repeatedly(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        again = job(expires_at=SENT + timedelta(days=7))
        scheduler.add(again)
        scheduler.add(job(priority=-1))
        for _ in range(self.ROUNDS):
            assert scheduler.pop_batch(0.0) == [again]
            scheduler.add(again)
        assert entries(scheduler) < self.BOUND

    def test_tidying_does_not_change_whose_turn_it_is(self) -> None:
        quiet, busy = Scheduler({"a": 2.0}), Scheduler({"a": 2.0})
        for n in range(90):
            one = job(tenant="abc"[n % 3], width=(512, 1024)[n % 2], height=1024, priority=n % 5)
            quiet.add(one)
            busy.add(one)
        for n in range(5_000):
            busy.add(job(tenant="abcd"[n % 4], priority=n % 5, expires_at=SENT))
            busy.pop_expired(SENT)
        assert drain(busy) == drain(quiet)


class TestQuarantine:
    def test_a_suspect_is_in_no_batch(self) -> None:
        scheduler = Scheduler()
        suspect, innocent = job(suspect=True, width=256), job(width=256)
        scheduler.add(suspect)
        scheduler.add(innocent)
        assert scheduler.quarantine_due(0.0)
        assert drain(scheduler) == [[innocent]]
        assert scheduler.pop_quarantined(0.0) is suspect
        assert not scheduler.quarantine_due(0.0)

    def test_a_suspect_that_waits_for_its_retry_blocks_no_other_job(self) -> None:
        scheduler = Scheduler()
        suspect = job(suspect=True)
        suspect.not_before = 5.0
        scheduler.add(suspect)
        assert not scheduler.quarantine_due(4.0)
        assert scheduler.pop_quarantined(4.0) is None
        assert scheduler.pop_quarantined(5.0) is suspect


class TestRetry:
    def test_waits_until_it_is_due(self) -> None:
        scheduler = Scheduler()
        again = job()
        again.not_before = 5.0
        scheduler.add(again)
        assert scheduler.pop_batch(4.9) == []
        assert scheduler.pop_batch(5.0) == [again]
