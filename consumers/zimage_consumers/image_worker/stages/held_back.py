"""Requests held back because the deployment, not they, may be at fault."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Hashable, Mapping

from zimage_consumers.image_worker.stages.breaker import Breaker, Cause
from zimage_consumers.image_worker.window.jobs import Job, Resolution, Stage
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.errors import ZImageError
from zimage_stream.events.codec import schema_mark
from zimage_stream.events.image_result import Code
from zimage_stream.telemetry.health import Health

log = logging.getLogger(__name__)

MAX_HELD_BACK_BYTES = 64 << 10
"""Largest request held back, in bytes. No valid request is as large, and all are kept in memory."""
ASK_EVERY_S = 2.0


class Releases:
    """Releases by operators. Read while something is held back, on threads of their own.

    Args:
        read: returns until when each code is released, in UNIX time.
    """

    def __init__(self, read: Callable[[], Mapping[Code, float]]) -> None:
        self._read = read
        self._until: Mapping[Code, float] = {}
        self._asking: threading.Thread | None = None
        self._ask_at = 0.0

    def refresh(self) -> None:
        """Read the releases again, if it is time. Does not wait."""
        if time.monotonic() >= self._ask_at and (self._asking is None or not self._asking.is_alive()):
            self._ask_at = time.monotonic() + ASK_EVERY_S
            # A daemon: a broker that does not respond must not keep the process alive.
            self._asking = threading.Thread(target=self._fetch, name="releases", daemon=True)
            self._asking.start()

    def is_released(self, code: Code) -> bool:
        """Whether requests that fail with this code must end now."""
        return time.time() < self._until.get(code, 0.0)

    def _fetch(self) -> None:
        try:
            self._until = self._read()
        except ZImageError as error:
            log.warning("releases of requests held back cannot be read: %s", error)


class HeldBack:
    """Holds back failed requests until it is clear who is at fault. Kafka thread only.

    Args:
        capacity: bytes of records; above it, nothing new is fetched.
    """

    def __init__(self, window: Window, capacity: int, releases: Releases, health: Health) -> None:
        self._window = window
        self._capacity = capacity
        self._releases = releases
        self._health = health
        self._breaker = Breaker[Job]()
        self._reasons: dict[Code, str] = {}

    @property
    def crowded(self) -> bool:
        """Whether there is no room for more."""
        return self._window.held_back_size >= self._capacity

    def holds_back(self, resolution: Resolution) -> bool:
        """Hold back a failed job if the deployment may be at fault. Returns whether it was held back."""
        job, code = resolution.job, resolution.code
        if (
            code is None
            or job.last_chance
            or job.size > MAX_HELD_BACK_BYTES
            or self._releases.is_released(code)
        ):
            return False
        if not self._breaker.fail(_cause(code, job), _identity(job), job):
            return False
        self._window.move(job, Stage.HELD_BACK)
        if code not in self._reasons:
            log.error("requests are held back, the first for %s: %s", code, resolution.cause, extra=job.log)
        self._reasons[code] = f"{code}: {resolution.cause}"
        self._report()
        return True

    def record_decoded(self) -> Collection[Job]:
        """Note that a record was decoded, so schemas are available. Returns the jobs to retry."""
        return self._resume(self._breaker.succeed((Code.UNKNOWN_SCHEMA,)))

    def succeeded(self, job: Job) -> Collection[Job]:
        """Note that an image is in the store; if it was generated just now, engine and store work. Returns
        the jobs to retry."""
        if job.timings.generate_ms is None:
            return ()
        return self._resume(self._breaker.succeed((Code.GENERATION_FAILED, Code.STORE_REJECTED)))

    def released(self) -> Collection[Job]:
        """Return the jobs that an operator has released, to be retried."""
        if not self._reasons:
            return ()
        self._releases.refresh()
        jobs: list[Job] = []
        for code in [code for code in self._reasons if self._releases.is_released(code)]:
            log.warning("an operator released the requests held back for %s", code)
            jobs += self._resume(self._breaker.release(code))
        return jobs

    def remove(self, job: Job) -> None:
        """Stop holding back a job that ends."""
        self._breaker.discard(lambda each: each is job)
        self._report()

    def sweep(self) -> None:
        """Drop the jobs whose partitions are gone."""
        self._breaker.discard(lambda job: job.gone)
        self._report()

    def _resume(self, jobs: Collection[Job]) -> Collection[Job]:
        for job in jobs:
            self._window.move(job, Stage.FETCHED)
        if jobs:
            self._report()
        return jobs

    def _report(self) -> None:
        for code, latest in list(self._reasons.items()):
            count, key = self._breaker.held_count(code), f"held-back-{code}"
            if count:
                self._health.hold(
                    key,
                    f"{count:,} requests are held back: too many have failed since the last success, for a "
                    f"reason that may be this deployment's fault, the latest with {latest}. Fix it; then, or "
                    f"if only their producer can fix it, run: zimage dead-letters release --code {code}",
                )
            else:
                log.info("no request is held back for %s any more", code)
                del self._reasons[code]
                self._health.release(key)


def _cause(code: Code, job: Job) -> Cause:
    return Cause(code, job.request.tenant if job.request else schema_mark(job.record.value))


def _identity(job: Job) -> Hashable:
    return (job.request.tenant, job.request.request_id) if job.request else hash(job.record.value)
