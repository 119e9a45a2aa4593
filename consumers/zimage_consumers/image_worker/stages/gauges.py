"""Samples the worker's state once a second for its metrics. Kafka thread only."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.settings import TelemetrySettings
from zimage_stream.telemetry.metrics import MAX_TENANTS, Metrics

EVERY_S = 1.0
OTHERS = "(others)"


class Gauges:
    """Keeps the worker's gauges up to date."""

    def __init__(self, metrics: Metrics, settings: TelemetrySettings) -> None:
        self._metrics = metrics
        self._settings = settings
        self._due = 0.0
        self._partitions: set[int] = set()
        self._tenants: set[str] = set()

    def sample(self, session: Session, window: Window, scheduler: Scheduler, image_s: float) -> None:
        """Sample the state, if it is time. ``image_s``: seconds that an image has taken recently."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        metrics, assignments = self._metrics, window.assignments.values()
        metrics.partitions.set(len(assignments))
        metrics.partitions_stalled.set(session.partitions.stalled)
        metrics.window_requests.set(sum(each.count for each in assignments))
        metrics.window_bytes.set(sum(each.size for each in assignments))
        self._set_unresolved(session.partitions.unresolved(), image_s)
        self._set_queues(queues(scheduler.by_tenant(), self._settings.tenant_label))

    def _set_unresolved(self, unresolved: Mapping[int, int], image_s: float) -> None:
        gauge = self._metrics.unresolved_requests
        for number, count in unresolved.items():
            gauge.labels(str(number)).set(count)
        for number in self._partitions - unresolved.keys():
            gauge.remove(str(number))
        self._partitions = set(unresolved)
        target_s = self._settings.drain_target_s
        self._metrics.desired_workers.set(desired_workers(sum(unresolved.values()), image_s, target_s))

    def _set_queues(self, waiting: Mapping[str, int]) -> None:
        gauge = self._metrics.queue_requests
        for tenant, count in waiting.items():
            gauge.labels(tenant).set(count)
        for tenant in self._tenants - waiting.keys():
            gauge.remove(tenant)
        self._tenants = set(waiting)


def desired_workers(unresolved: int, image_s: float, target_s: float) -> float:
    """Number of workers that would serve this many requests in ``target_s`` seconds. Pure.

    Args:
        image_s: seconds per image; 0 while unknown.
    """
    if unresolved == 0:
        return 0.0
    # Before the first image the speed is unknown; one worker is enough to find out.
    return unresolved * image_s / target_s if image_s else 1.0


def queues(waiting: Counter[str], by_tenant: bool) -> dict[str, int]:
    """Queue lengths by label: the longest ``MAX_TENANTS`` queues, and all others as one. Pure.

    Args:
        by_tenant: if ``False``, all are counted as one, without a label.
    """
    if not by_tenant:
        return {"": waiting.total()}
    longest = dict(waiting.most_common(MAX_TENANTS))
    rest = waiting.total() - sum(longest.values())
    return {**longest, OTHERS: rest} if rest else longest
