"""The scheduler under any interleaving of events, compared with a model that only keeps lists."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import combinations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.image_worker.jobs import job, leave
from zimage_consumers.image_worker.device.batching import BatchLimits, cost, shape_of
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.window.jobs import Job

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SIDES = (64, 512, 1024)
TENANTS = ("a", "b", "c", "d")
ARRIVALS = st.tuples(
    st.sampled_from(TENANTS),
    st.sampled_from(SIDES),
    st.integers(0, 2),
    st.integers(-1, 1),
    st.none() | st.integers(20, 60),
    st.sampled_from((0, 0, 0, 5)),
)
"""Tenant, side, partition, priority, seconds until it expires, seconds until a retry is due."""
MOST = 8 * 512 * 512 * 8 / 1e6
"""Cost of the largest batch: eight of 512x512, or one of 1024x1024."""


class TheScheduler(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.waiting: list[Job] = []
        self.gone: set[Job] = set()
        self.served: dict[tuple[str, str], list[float]] = {}

    @initialize(weights=st.dictionaries(st.sampled_from(TENANTS), st.sampled_from((0.5, 2.0, 5.0))))
    def begin(self, weights: dict[str, float]) -> None:
        self.weights = {tenant: weights.get(tenant, 1.0) for tenant in TENANTS}
        self.scheduler = Scheduler(weights, BatchLimits(8))

    def due(self) -> list[Job]:
        return [each for each in self.waiting if each.not_before <= self.now]

    @rule(arrivals=st.lists(ARRIVALS, min_size=1, max_size=12))
    def arrive(self, arrivals: list[tuple[str, int, int, int, int | None, int]]) -> None:
        for tenant, side, partition, priority, left_s, delay_s in arrivals:
            expires = None if left_s is None else BEGIN + timedelta(seconds=self.now + left_s)
            one = job(
                partition, tenant=tenant, width=side, height=side, priority=priority, expires_at=expires
            )
            one.not_before = self.now + delay_s if delay_s else 0.0
            self.scheduler.add(one)
            self.waiting.append(one)

    @rule(side=st.sampled_from(SIDES), tenants=st.sampled_from(list(combinations(TENANTS, 2))))
    def two_heavy_tenants_arrive(self, side: int, tenants: tuple[str, str]) -> None:
        self.arrive([(tenant, side, 0, 0, None, 0) for _ in range(15) for tenant in tenants])

    @rule(seconds=st.integers(0, 10))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(batches=st.integers(1, 6))
    def runs(self, batches: int) -> None:
        for _ in range(batches):
            self.run_one()

    def run_one(self) -> None:
        due = self.due()
        batch = self.scheduler.pop_batch(self.now)
        # Work conserving: as long as something may run, something does.
        assert bool(batch) == bool(due)
        assert set(batch) <= set(due)
        assert len(batch) == len(set(batch))
        assert len({shape_of(each.decoded, each.tokens) for each in batch}) <= 1
        for tenant in {each.decoded.tenant for each in batch}:
            mine = [each for each in due if each.decoded.tenant == tenant]
            taken = [each for each in batch if each.decoded.tenant == tenant]
            assert taken == sorted(mine, key=rank)[: len(taken)]
        self.account(batch, {each.decoded.tenant for each in due})
        self.take_away(batch)

    @rule()
    def expires(self) -> None:
        at = BEGIN + timedelta(seconds=self.now)
        over = {each for each in self.waiting if each.decoded.expires_at and each.decoded.expires_at <= at}
        assert set(self.scheduler.pop_expired(at)) == over
        self.take_away(over)

    @rule(partition=st.integers(0, 2))
    def loses_a_partition(self, partition: int) -> None:
        leave(self.waiting, {partition})
        self.scheduler.sweep()
        self.take_away([each for each in self.waiting if each.record.partition == partition])

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "scheduler"):
            assert len(self.scheduler) == len(self.waiting)

    @invariant()
    def shares_are_fair(self) -> None:
        """Of two tenants that always had work, neither is ahead by more than a batch of each."""
        for (one, other), (first, second) in self.served.items():
            bound = MOST / self.weights[one] + MOST / self.weights[other]
            assert abs(first - second) <= bound + 1e-6

    def account(self, batch: list[Job], backlogged: set[str]) -> None:
        """Count what each of two tenants was served since both last had to wait."""
        for pair in combinations(TENANTS, 2):
            if not backlogged.issuperset(pair):
                self.served.pop(pair, None)
                continue
            got = self.served.setdefault(pair, [0.0, 0.0])
            for index, tenant in enumerate(pair):
                mine = sum(cost(each.decoded) for each in batch if each.decoded.tenant == tenant)
                got[index] += mine / self.weights[tenant]

    def take_away(self, jobs: list[Job] | set[Job]) -> None:
        assert not self.gone & set(jobs)
        self.gone |= set(jobs)
        self.waiting = [each for each in self.waiting if each not in self.gone]
        left = {each.decoded.tenant for each in self.due()}
        for pair in list(self.served):
            if not left.issuperset(pair):
                del self.served[pair]

    def teardown(self) -> None:
        """No starvation: every waiting job gets its turn, however late it arrived."""
        if not hasattr(self, "scheduler"):
            return
        self.now += 1e6
        while self.waiting:
            batch = self.scheduler.pop_batch(self.now)
            assert batch
            self.take_away(batch)


def rank(one: Job) -> tuple[int, float, int]:
    """Sort key: priority, then expiry, then arrival."""
    request = one.decoded
    assert one.arrival is not None
    return (
        -request.priority,
        request.expires_at.timestamp() if request.expires_at else float("inf"),
        one.arrival,
    )


TestTheScheduler = TheScheduler.TestCase
TestTheScheduler.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
