"""Admits fetched records: each becomes a checked request, or fails."""

from __future__ import annotations

import logging
import time
from collections import deque

from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.window.jobs import Failed, Job
from zimage_consumers.image_worker.window.ledger import RECORDS_PER_TURN
from zimage_stream.errors import RegistryUnavailableError
from zimage_stream.events.registry import SchemaPendingError, SchemaUnavailableError
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
PENDING_AGAIN_S = 0.2


class Admission:
    """Decodes fetched records in order of arrival. A record whose schema is unavailable waits on its own.

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
        """Whether any record is ready to be decoded."""
        return bool(self._incoming)

    def add(self, job: Job) -> None:
        """Add a job that was fetched."""
        self._incoming.append(job)

    def sweep(self) -> None:
        """Drop the jobs whose partitions are being given up, or are gone."""
        self._incoming = deque(job for job in self._incoming if not job.leaving)
        self._unread = [job for job in self._unread if not job.leaving]

    def admit(self, outage_known: bool) -> list[Job | Failed]:
        """Decode and check the next records.

        Args:
            outage_known: the registry fails to answer another caller; cached schemas must not hide that.

        Returns:
            the jobs that can be scheduled, and those that failed.
        """
        again = bool(self._unread) and time.monotonic() >= self._ask_at
        if again:
            self._incoming.extendleft(reversed(self._unread))
            self._unread.clear()
        out: list[Job | Failed] = []
        decoded = False
        for _ in range(min(len(self._incoming), RECORDS_PER_TURN)):
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
                out.append(job if job.cancelled is None else Failed(job, job.cancelled))
        if (decoded or again) and not self._unread:
            self._said = False
            if not outage_known:
                self._health.up("registry")
        return out

    def _set_aside(self, job: Job, error: RegistryUnavailableError) -> None:
        """Let a record wait for its schema without holding up the others."""
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
