"""Requests that would end in the dead letters for a reason that may be this deployment's."""

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

LARGEST_HELD = 64 << 10
"""Bytes. No request that keeps the rules is as large, and what is held back is kept in memory."""
ASK_EVERY_S = 2.0


class Releases:
    """What operators have let go. Asked for while something is held back, on threads of its own.

    Args:
        read: until when each code is let go, in UNIX time.
    """

    def __init__(self, read: Callable[[], Mapping[Code, float]]) -> None:
        self._read = read
        self._until: Mapping[Code, float] = {}
        self._asking: threading.Thread | None = None
        self._ask_at = 0.0

    def ask(self) -> None:
        """Have it read anew, if it is time; returns at once."""
        if time.monotonic() >= self._ask_at and (self._asking is None or not self._asking.is_alive()):
            self._ask_at = time.monotonic() + ASK_EVERY_S
            # A broker that does not answer must keep no process from ending.
            self._asking = threading.Thread(target=self._ask, name="releases", daemon=True)
            self._asking.start()

    def let_go(self, code: Code) -> bool:
        """Whether requests that fail with this code are to end now."""
        return time.time() < self._until.get(code, 0.0)

    def _ask(self) -> None:
        try:
            self._until = self._read()
        except ZImageError as error:
            log.warning("whether requests held back are let go cannot be read: %s", error)


class HeldBack:
    """Holds them back until it is known whose fault it is. Kafka thread only.

    Args:
        capacity: bytes of records; with more, nothing new is fetched.
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

    def takes(self, resolution: Resolution) -> bool:
        """Whether a job that failed, for a reason that may be ours, is held back instead of answered."""
        job, code = resolution.job, resolution.code
        if code is None or job.tried_again or job.size > LARGEST_HELD or self._releases.let_go(code):
            return False
        if not self._breaker.fail(_cause(code, job), _identity(job), job):
            return False
        self._window.move(job, Stage.HELD_BACK)
        if code not in self._reasons:
            log.error("requests are held back, the first for %s: %s", code, resolution.cause, extra=job.log)
        self._reasons[code] = f"{code}: {resolution.cause}"
        self._tell()
        return True

    def could_be_read(self) -> Collection[Job]:
        """A record was decoded, so that schemas can be had. Returns the jobs to try once more."""
        return self._let_go(self._breaker.succeed((Code.UNKNOWN_SCHEMA,)))

    def worked(self, job: Job) -> Collection[Job]:
        """A picture is in the store; if it was made now, engine and store work. Returns the jobs to try once
        more."""
        if job.timings.generate_ms is None:
            return ()
        return self._let_go(self._breaker.succeed((Code.GENERATION_FAILED, Code.STORE_REJECTED)))

    def released(self) -> Collection[Job]:
        """What an operator has released: jobs to try once more."""
        if not self._reasons:
            return ()
        self._releases.ask()
        jobs: list[Job] = []
        for code in [code for code in self._reasons if self._releases.let_go(code)]:
            log.warning("an operator lets go what is held back for %s", code)
            jobs += self._let_go(self._breaker.release(code))
        return jobs

    def sweep(self) -> None:
        """Let go of the jobs whose partitions are gone."""
        self._breaker.discard(lambda job: job.gone)
        self._tell()

    def _let_go(self, jobs: Collection[Job]) -> Collection[Job]:
        for job in jobs:
            self._window.move(job, Stage.FETCHED)
        if jobs:
            self._tell()
        return jobs

    def _tell(self) -> None:
        for code, latest in list(self._reasons.items()):
            count, key = self._breaker.holds(code), f"held-back-{code}"
            if count:
                self._health.hold(
                    key,
                    f"{count:,} requests are held back: too many have failed since one succeeded, for a "
                    f"reason that may be this deployment's, the latest with {latest}. Mend it; then, or if "
                    f"only their producer can, run: zimage dead-letters release --code {code}",
                )
            else:
                log.info("no request is held back any more for %s", code)
                del self._reasons[code]
                self._health.release(key)


def _cause(code: Code, job: Job) -> Cause:
    return Cause(code, job.request.tenant if job.request else schema_mark(job.record.value))


def _identity(job: Job) -> Hashable:
    return (job.request.tenant, job.request.request_id) if job.request else hash(job.record.value)
