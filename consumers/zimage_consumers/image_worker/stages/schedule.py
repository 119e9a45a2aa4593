"""Decides which requests of the window run next.

Between tenants: weighted fair queueing on predicted cost (start-time fair queueing: each tenant has a virtual
clock that advances by cost / weight of what it was served, and the tenant furthest behind is next). Within a
tenant: by priority, then expiry, then arrival. Nothing here reads a clock or does I/O.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from zimage_consumers.image_worker.device.batching import BatchLimits, cost, shape_of
from zimage_consumers.image_worker.window.jobs import Job

_COMPANIONS_LOOKED_AT = 64
"""Tenants considered as companions for a batch's first request; bounds the cost of a decision."""
_ROUNDING = 1e-6
_LEFTOVERS = 256
"""Minimum number of jobs added between two tidyings."""


@dataclass(slots=True)
class _Tenant:
    name: str
    weight: float
    clock: float = 0.0
    queue: list[tuple[int, float, int, Job]] = field(default_factory=list)


class Scheduler:
    """Holds the window's waiting jobs. Adding and choosing cost O(log n), amortised.

    A job that leaves remains in the other queues it was in until they are tidied: they hold at most about
    twice as many jobs as the window has held.
    """

    def __init__(self, weights: Mapping[str, float] | None = None, limits: BatchLimits | None = None) -> None:
        self._weights = dict(weights or {})
        self._limits = limits or BatchLimits(8)
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, int, _Tenant]] = []
        self._clock = 0.0
        self._idle: list[tuple[float, int, _Tenant]] = []
        self._arrivals = itertools.count()
        self._ties = itertools.count()
        self._waiting: set[Job] = set()
        self._delayed: list[tuple[float, int, Job]] = []
        self._quarantined: deque[Job] = deque()
        self._expiring: list[tuple[float, int, Job]] = []
        self._added = 0

    def by_tenant(self) -> Counter[str]:
        """Number of waiting jobs by tenant; jobs that must not be decoded yet have no tenant."""
        return Counter(job.request.tenant if job.request else "" for job in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def quarantine_due(self, now: float) -> bool:
        """Whether a job that must run alone is due."""
        return any(job in self._waiting and job.not_before <= now for job in self._quarantined)

    def add(self, job: Job) -> None:
        """Add a job to the window, or return it for a retry."""
        if not self._waiting:
            self._forget()
        self._added += 1
        if self._added > len(self._waiting) + len(self._tenants) + _LEFTOVERS:
            self._tidy()
        self._waiting.add(job)
        if job.arrival is None:
            job.arrival = next(self._arrivals)
        if job.runs_alone:
            self._quarantined.append(job)
        elif job.not_before > 0:
            heapq.heappush(self._delayed, (job.not_before, job.arrival, job))
        else:
            self._enqueue(job, job.arrival)
        if (expiry := _expiry(job)) is not None:
            heapq.heappush(self._expiring, (expiry, next(self._ties), job))

    def sweep(self) -> None:
        """Drop the jobs whose partitions are being given up, or are gone."""
        self._waiting = {job for job in self._waiting if not job.leaving}
        self._tidy()

    def put_back(self, job: Job) -> None:
        """Return a job that was chosen and has not run. Its tenant is not charged, or whoever cancels a
        companion of it would delay its tenant."""
        tenant = None if job.runs_alone else self._tenants.get(job.decoded.tenant)
        if tenant is not None:
            tenant.clock = max(0.0, tenant.clock - cost(job.decoded) / tenant.weight)
            self._turns = [(each.clock, tie, each) for _, tie, each in self._turns]
            heapq.heapify(self._turns)
        self.add(job)

    def remove(self, job: Job) -> bool:
        """Remove a job. Returns whether it was waiting."""
        waited = job in self._waiting
        self._waiting.discard(job)
        return waited

    def pop_expired(self, at: datetime) -> list[Job]:
        """Remove and return the jobs whose ``expires_at`` passed before they were ever started."""
        expired = []
        while self._expiring and self._expiring[0][0] <= at.timestamp():
            job = heapq.heappop(self._expiring)[2]
            # It may have been started since, and be back for its retry.
            if job in self._waiting and not job.ever_started:
                self._waiting.discard(job)
                expired.append(job)
        return expired

    def pop_quarantined(self, now: float) -> Job | None:
        """Remove and return the next job that must run alone."""
        self._quarantined = deque(job for job in self._quarantined if job in self._waiting)
        for job in self._quarantined:
            if job.not_before <= now:
                self._quarantined.remove(job)
                self._waiting.discard(job)
                return job
        return None

    def pop_batch(self, now: float) -> list[Job]:
        """Remove and return the next batch: jobs of one shape, none if nothing waits.

        The first job is the fair choice. Others of its shape join as long as each is next in its own tenant's
        order and puts its tenant no further ahead than a whole batch would: joining is free for the device,
        but not for tenants that have other shapes.
        """
        while self._delayed and self._delayed[0][0] <= now:
            _, arrival, job = heapq.heappop(self._delayed)
            if job in self._waiting:
                self._enqueue(job, arrival)
        tenant = self._next_tenant()
        if tenant is None:
            return []
        self._clock = tenant.clock
        self._forget_idle()
        first = self._serve(tenant)
        batch = [first]
        request = first.decoded
        shape = shape_of(request, first.tokens)
        work = cost(request)
        room = self._limits.largest(request.width, request.height)
        self._return(tenant)
        passed: list[_Tenant] = []
        while len(batch) < room and len(passed) < _COMPANIONS_LOOKED_AT:
            tenant = self._next_tenant()
            if tenant is None:
                break
            head = tenant.queue[0][-1]
            ahead = tenant.clock + work / tenant.weight - self._clock
            if (
                shape_of(head.decoded, head.tokens) == shape
                and ahead <= room * work / tenant.weight + _ROUNDING
            ):
                batch.append(self._serve(tenant))
                self._return(tenant)
            else:
                passed.append(tenant)
        for tenant in passed:
            self._return(tenant)
        return batch

    def _enqueue(self, job: Job, arrival: int) -> None:
        request = job.decoded
        tenant = self._tenants.get(request.tenant)
        if tenant is None:
            tenant = _Tenant(request.tenant, self._weights.get(request.tenant, 1.0))
            self._tenants[request.tenant] = tenant
        if not tenant.queue:
            # A tenant that was idle does not accumulate credit.
            tenant.clock = max(tenant.clock, self._clock)
            heapq.heappush(self._turns, (tenant.clock, next(self._ties), tenant))
        expiry = request.expires_at.timestamp() if request.expires_at else float("inf")
        heapq.heappush(tenant.queue, (-request.priority, expiry, arrival, job))

    def _next_tenant(self) -> _Tenant | None:
        """Remove and return the tenant furthest behind among those with a waiting job."""
        while self._turns:
            tenant = heapq.heappop(self._turns)[2]
            while tenant.queue and tenant.queue[0][-1] not in self._waiting:
                heapq.heappop(tenant.queue)
            if tenant.queue:
                return tenant
            self._return(tenant)
        return None

    def _serve(self, tenant: _Tenant) -> Job:
        job = heapq.heappop(tenant.queue)[-1]
        self._waiting.discard(job)
        tenant.clock += cost(job.decoded) / tenant.weight
        return job

    def _return(self, tenant: _Tenant) -> None:
        line = self._turns if tenant.queue else self._idle
        heapq.heappush(line, (tenant.clock, next(self._ties), tenant))

    def _forget_idle(self) -> None:
        """Drop tenants without work whose clock is no longer ahead: on return they would be set to the common
        clock anyway. Those still ahead are kept, or submitting one request at a time would let a tenant jump
        the queue."""
        while self._idle and self._idle[0][0] <= self._clock:
            tenant = heapq.heappop(self._idle)[2]
            current = self._tenants.get(tenant.name) is tenant
            if current and not tenant.queue and tenant.clock <= self._clock:
                del self._tenants[tenant.name]

    def _tidy(self) -> None:
        """Drop what jobs that no longer wait have left behind in the queues.

        While there is always something waiting, nothing else drops it: a job that expires late, or is hidden
        behind higher priorities, never reaches the top of its queue. Amortised O(1) per job added: since the
        last tidying more jobs were added than there are jobs and tenants to go through, and each entry is
        dropped only once.
        """
        self._added = 0
        waiting = self._waiting
        for tenant in self._tenants.values():
            tenant.queue = [place for place in tenant.queue if place[-1] in waiting]
            heapq.heapify(tenant.queue)
        self._turns = [turn for turn in self._turns if turn[-1].queue]
        heapq.heapify(self._turns)
        # Rebuilt, since a tenant may be in it once for each time that its work ran out.
        self._idle = [
            (each.clock, next(self._ties), each) for each in self._tenants.values() if not each.queue
        ]
        heapq.heapify(self._idle)
        self._delayed = [place for place in self._delayed if place[-1] in waiting]
        heapq.heapify(self._delayed)
        self._quarantined = deque(job for job in self._quarantined if job in waiting)
        # Rebuilt, since a job is in it once for each time that it returned.
        expiries = ((_expiry(job), job) for job in waiting)
        self._expiring = [(expiry, next(self._ties), job) for expiry, job in expiries if expiry is not None]
        heapq.heapify(self._expiring)

    def _forget(self) -> None:
        """Reset all queues and clocks: with nothing waiting there is nothing to be fair about."""
        self._tenants.clear()
        self._turns.clear()
        self._idle.clear()
        self._delayed.clear()
        self._expiring.clear()
        self._quarantined.clear()
        self._added = 0
        self._clock = 0.0


def _expiry(job: Job) -> float | None:
    """Expiry of the job in UNIX time, if it has one; a job that was ever started no longer expires."""
    expires_at = job.request.expires_at if job.request else None
    return expires_at.timestamp() if expires_at and not job.ever_started else None
