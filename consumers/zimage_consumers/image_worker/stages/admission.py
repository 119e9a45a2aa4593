"""Records that were fetched, until they are requests: decoded and checked, or failed."""

from __future__ import annotations

import logging
import time
from collections import deque

from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.window.jobs import Failed, Job
from zimage_consumers.image_worker.window.ledger import RECORDS_A_TURN
from zimage_stream.errors import RegistryUnavailableError
from zimage_stream.events.registry import SchemaPendingError, SchemaUnavailableError
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
PENDING_AGAIN_S = 0.2


class Admission:
    """Decodes what was fetched, in the order of arrival. One whose schema cannot be had now waits by itself.

    Kafka thread only.
    """

    def __init__(self, intake: Intake, health: Health, metrics: Metrics) -> None:
        self._intake = intake
        self._health = health
        self._metrics = metrics
        self._incoming: deque[Job] = deque()
        self._unread: list[Job] = []
        self._ask_at = 0.0
        self._said = False

    def __bool__(self) -> bool:
        """Whether something can be decoded now."""
        return bool(self._incoming)

    def add(self, job: Job) -> None:
        """Take a job that was fetched."""
        self._incoming.append(job)

    def sweep(self) -> None:
        """Let go of the jobs whose partitions are being given up, or are gone."""
        self._incoming = deque(job for job in self._incoming if not job.leaving)
        self._unread = [job for job in self._unread if not job.leaving]

    def admit(self, outage_known: bool) -> list[Job | Failed]:
        """Decode and check some.

        Args:
            outage_known: the registry does not answer somebody else; cached schemas must not hide that.

        Returns:
            those that can be scheduled, and those that cannot be served.
        """
        again = bool(self._unread) and time.monotonic() >= self._ask_at
        if again:
            self._incoming.extendleft(reversed(self._unread))
            self._unread.clear()
        out: list[Job | Failed] = []
        decoded = False
        for _ in range(min(len(self._incoming), RECORDS_A_TURN)):
            job = self._incoming.popleft()
            if job.leaving:
                continue
            started = time.monotonic()
            try:
                with self._metrics.decode_seconds.time():
                    self._intake.check(job)
            except RegistryUnavailableError as error:
                self._set_aside(job, error)
            except Exception as error:
                out.append(Failed(job, error))
            else:
                decoded = True
                job.timings = job.timings.after("decode", time.monotonic() - started)
                out.append(job)
        if (decoded or again) and not self._unread:
            self._said = False
            if not outage_known:
                self._health.up("registry")
        return out

    def _set_aside(self, job: Job, error: RegistryUnavailableError) -> None:
        """Have a record wait for its schema, and nobody wait for the record."""
        pending = isinstance(error, SchemaPendingError)
        ask_at = time.monotonic() + (PENDING_AGAIN_S if pending else ASK_AGAIN_S)
        self._ask_at = min(self._ask_at, ask_at) if self._unread else ask_at
        self._unread.append(job)
        if pending:
            return
        if not self._said:
            self._said = True
            log.warning("a record waits for its schema: %s", error, extra=job.log)
        if isinstance(error, SchemaUnavailableError):
            self._health.up("registry")
        else:
            self._health.down("registry", str(error))
