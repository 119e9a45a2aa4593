"""The scheduler: everybody's turn comes, in a fair order, and nothing is forgotten or run twice."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.image_worker.jobs import SENT, job
from zimage_consumers.image_worker.batching import BatchLimits, largest_batch, shape_of
from zimage_consumers.image_worker.jobs import Job
from zimage_consumers.image_worker.schedule import Scheduler


def drain(scheduler: Scheduler) -> list[list[Job]]:
    batches = []
    while batch := scheduler.take_batch(now=0.0):
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
    def test_of_partitions_given_up_is_never_run(self, waiting: list[Job], gone: set[int]) -> None:
        scheduler = Scheduler()
        for one in waiting:
            scheduler.add(one)
        scheduler.discard(gone)
        run = [j for batch in drain(scheduler) for j in batch]
        assert sorted(map(id, run)) == sorted(id(j) for j in waiting if j.record.partition not in gone)


class TestFairness:
    def test_a_light_tenant_does_not_wait_behind_a_heavy_one(self) -> None:
        scheduler = Scheduler()
        for _ in range(1_000):
            scheduler.add(job(tenant="heavy"))
        for _ in range(10):
            scheduler.take_batch(0.0)
        light = job(tenant="light")
        scheduler.add(light)
        assert light in scheduler.take_batch(0.0) + scheduler.take_batch(0.0)

    def test_shares_follow_the_weights(self) -> None:
        scheduler = Scheduler({"gold": 3.0})
        for _ in range(400):
            scheduler.add(job(tenant="gold"))
            scheduler.add(job(tenant="plain"))
        first = [scheduler.take_batch(0.0)[0].decoded.tenant for _ in range(200)]
        assert abs(first.count("gold") - 150) <= 2

    def test_cost_counts_not_the_number_of_requests(self) -> None:
        scheduler = Scheduler(limits=BatchLimits(1))
        for _ in range(100):
            scheduler.add(job(tenant="large", width=1024, height=1024))
            scheduler.add(job(tenant="small", width=512, height=512))
        first = [scheduler.take_batch(0.0)[0].decoded.tenant for _ in range(50)]
        assert abs(first.count("small") - 40) <= 1

    def test_asking_one_at_a_time_is_no_way_to_jump_the_line(self) -> None:
        scheduler = Scheduler()
        for _ in range(200):
            scheduler.add(job(tenant="patient"))
        served = 0
        scheduler.add(job(tenant="eager"))
        for _ in range(100):
            batch = scheduler.take_batch(0.0)
            if batch[0].decoded.tenant == "eager":
                served += 1
                scheduler.add(job(tenant="eager"))
        assert served <= 51

    def test_a_tenant_that_was_away_does_not_save_up_turns(self) -> None:
        scheduler = Scheduler()
        for _ in range(300):
            scheduler.add(job(tenant="steady"))
        for _ in range(100):
            scheduler.take_batch(0.0)
        for _ in range(100):
            scheduler.add(job(tenant="late"))
        first = [scheduler.take_batch(0.0)[0].decoded.tenant for _ in range(100)]
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

    def test_what_comes_back_keeps_its_place(self) -> None:
        scheduler = Scheduler()
        first, second = job(), job()
        scheduler.add(first)
        scheduler.add(second)
        scheduler.add(scheduler.take_batch(0.0)[0])
        assert scheduler.take_batch(0.0) == [first]


class TestExpiry:
    def test_takes_exactly_what_has_expired(self) -> None:
        scheduler = Scheduler()
        gone = job(expires_at=SENT)
        kept = job(expires_at=SENT + timedelta(seconds=2))
        scheduler.add(gone)
        scheduler.add(kept)
        assert scheduler.take_expired(SENT + timedelta(seconds=1)) == [gone]
        assert drain(scheduler) == [[kept]]

    def test_a_request_that_was_started_does_not_expire(self) -> None:
        scheduler = Scheduler()
        scheduler.add(job(expires_at=SENT, marked=True))
        assert scheduler.take_expired(SENT + timedelta(days=1)) == []


class TestAlone:
    def test_a_suspect_is_in_no_batch(self) -> None:
        scheduler = Scheduler()
        suspect, innocent = job(suspect=True, width=256), job(width=256)
        scheduler.add(suspect)
        scheduler.add(innocent)
        assert scheduler.wants_solitude(0.0)
        assert drain(scheduler) == [[innocent]]
        assert scheduler.take_alone(0.0) is suspect
        assert not scheduler.wants_solitude(0.0)

    def test_a_suspect_that_waits_for_its_retry_holds_nobody_up(self) -> None:
        scheduler = Scheduler()
        suspect = job(suspect=True)
        suspect.not_before = 5.0
        scheduler.add(suspect)
        assert not scheduler.wants_solitude(4.0)
        assert scheduler.take_alone(4.0) is None
        assert scheduler.take_alone(5.0) is suspect


class TestRetry:
    def test_waits_until_it_is_due(self) -> None:
        scheduler = Scheduler()
        again = job()
        again.not_before = 5.0
        scheduler.add(again)
        assert scheduler.take_batch(4.9) == []
        assert scheduler.take_batch(5.0) == [again]
