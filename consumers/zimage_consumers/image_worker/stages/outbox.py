"""Holds jobs that have ended until their terminal events are published."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from zimage_consumers.image_worker.group.publish import (
    ClientsLostError,
    OutgoingRecord,
    PublishAbortedError,
    RefusedRecordError,
)
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.terminal import Identity, records_of, status_of
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Resolution, now
from zimage_stream.checkpoint import Checkpoint, CheckpointOverflowError
from zimage_stream.errors import RegistryUnavailableError, SchemaMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.settings import TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

MAX_RESOLUTIONS = 500
"""Largest number of resolutions in one transaction; keeps transactions short after an outage."""
WAIT_AFTER_ABORT_S = 0.1
SCHEMA_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Publication:
    """The result of one publication.

    Attributes:
        out: jobs whose terminal events were published.
        withheld: jobs whose terminal events cannot be published.
    """

    out: Sequence[Job] = ()
    withheld: Sequence[Job] = ()


NOTHING = Publication()


class Outbox:
    """Publishes terminal events, together with the checkpoints that resolve them. Kafka thread only."""

    def __init__(
        self,
        topics: TopicSettings,
        codec: Codec,
        identity: Identity,
        health: Health,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        self._tracer = tracer
        self._topics = topics
        self._codec = codec
        self._identity = identity
        self._health = health
        self._metrics = metrics
        self._ready: list[Resolution] = []
        self._not_before = 0.0
        self._singly = 0
        self.waits_for_schema = False
        """Whether the schema of results is missing from the registry, or the registry does not respond."""

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, resolution: Resolution) -> None:
        """Add a job that has ended."""
        self._ready.append(resolution)

    def sweep(self) -> None:
        """Drop the jobs whose partitions are gone."""
        self._ready = [resolution for resolution in self._ready if not resolution.job.gone]

    def can_encode(self) -> bool:
        """Whether the registry has the schema of results; reported in /readyz if it does not."""
        try:
            self._codec.prepare_results(self._topics.results)
        except SchemaMissingError as error:
            self._wait("no result can be written", error)
            self._health.hold("results-schema", f"no result can be written: {error}")
        except RegistryUnavailableError as error:
            self._wait("results wait for the schema registry", error)
            self._health.down("registry", str(error))
            self._health.release("results-schema")
        else:
            if self.waits_for_schema:
                log.info("results can be written again")
                self._health.up("registry")
                self._health.release("results-schema")
            self.waits_for_schema = False
        return not self.waits_for_schema

    def recheck(self) -> None:
        """Check again whether results can be written, if it is time."""
        if time.monotonic() >= self._not_before:
            self.can_encode()

    def _wait(self, what: str, error: Exception) -> None:
        if not self.waits_for_schema:
            log.error("%s, all finished work is kept: %s", what, error)
        self.waits_for_schema = True
        self._not_before = time.monotonic() + SCHEMA_WAIT_S

    def publish(self, session: Session) -> Publication:
        """Publish what is ready, if it is time.

        Raises:
            CommitRefusedError, ClientsLostError: see :mod:`~zimage_consumers.image_worker.group.publish`.
        """
        self.sweep()
        if not self._ready or time.monotonic() < self._not_before or not self.can_encode():
            return NOTHING
        batch, checkpoints = _fitting(self._ready[: 1 if self._singly else MAX_RESOLUTIONS])
        if not batch:
            return NOTHING
        at = now()
        records: list[OutgoingRecord] = []
        for resolution in batch:
            try:
                records += records_of(resolution, self._topics, self._codec, self._identity, at)
            except Exception as error:
                # A bug of ours; one record must not stop the worker.
                return Publication(withheld=[self._isolate(resolution, error)])
        started = time.monotonic()
        try:
            session.publish(records, checkpoints)
        except RefusedRecordError as error:
            return self._refused_record(batch, error)
        except PublishAbortedError as error:
            log.warning("a publication was aborted and will be retried: %s", error)
            self._metrics.transactions.labels("aborted").inc()
            self._not_before = time.monotonic() + WAIT_AFTER_ABORT_S
            return NOTHING
        except ClientsLostError:
            self._metrics.transactions.labels("lost").inc()
            raise
        return self._note_published(batch, time.monotonic() - started)

    def _note_published(self, batch: Sequence[Resolution], elapsed_s: float) -> Publication:
        self._singly = max(0, self._singly - 1)
        self._metrics.transactions.labels("committed").inc()
        self._metrics.transaction_seconds.observe(elapsed_s)
        out = set(map(id, batch))
        self._ready = [resolution for resolution in self._ready if id(resolution) not in out]
        for resolution in batch:
            self._count(resolution)
            self._trace(resolution, elapsed_s)
        return Publication([resolution.job for resolution in batch])

    def _refused_record(self, batch: Sequence[Resolution], error: RefusedRecordError) -> Publication:
        """React to a record in this batch that the brokers refuse; none of the batch was published."""
        if len(batch) > 1:
            # Publishing them one at a time shows which record it is.
            log.warning("the brokers refuse a record, publishing %d one at a time: %s", len(batch), error)
            self._singly = len(batch)
            return NOTHING
        (resolution,) = batch
        if not resolution.job.cut:
            # The topic may accept less than it should. Where and why the request failed matter most.
            log.warning("the brokers refuse a record, publishing it in cut form: %s", error)
            resolution.job.cut = True
            return NOTHING
        self._singly = max(0, self._singly - 1)
        return Publication(withheld=[self._isolate(resolution, error)])

    def _isolate(self, resolution: Resolution, error: Exception) -> Job:
        """Give up on a terminal event and report it. Returns its job."""
        record, assignment = resolution.job.record, resolution.job.assignment
        assignment.refused += 1
        reason = (
            f"the terminal event of offset {record.offset} in partition {record.partition} cannot be "
            f"published: {error}"
        )
        log.error(reason, extra=resolution.job.log)
        several = f" (one of {assignment.refused:,} in this partition)"
        self._health.hold(
            f"refused-record-{record.partition}",
            reason + several * (assignment.refused > 1),
            record.partition,
        )
        self._ready.remove(resolution)
        return resolution.job

    def _trace(self, resolution: Resolution, elapsed_s: float) -> None:
        job, request = resolution.job, resolution.job.request
        spans = job.timings.after("publish", elapsed_s).spans
        attributes: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": job.record.topic,
            "messaging.destination.partition.id": str(job.record.partition),
            "messaging.kafka.offset": job.record.offset,
            "zimage.attempts": job.attempts,
        }
        if request is not None:
            attributes["messaging.message.id"] = request.request_id
            attributes["zimage.tenant"] = request.tenant
        self._tracer.record(job.record.headers, spans, attributes, resolution.code)

    def _count(self, resolution: Resolution) -> None:
        job, code = resolution.job, resolution.code
        fields = job.log | {"attempt": job.attempts, "code": code}
        if job.request is not None:
            status = status_of(code)
            self._metrics.results.labels(status).inc()
            log.info("%s", status.lower(), extra=fields)
        if resolution.dead and code is not None:
            self._metrics.dead_letters.labels(code).inc()
            log.warning("dead letter: %s", resolution.cause, extra=fields)


def _fitting(ready: list[Resolution]) -> tuple[list[Resolution], dict[int, Checkpoint]]:
    """The resolutions whose checkpoints fit into the commit metadata, and those checkpoints.

    An offset that does not fit is kept back together with its result, never apart from it. The lowest offsets
    go first, since they let the base advance.
    """
    by_assignment: dict[Assignment, list[Resolution]] = defaultdict(list)
    for resolution in ready:
        by_assignment[resolution.job.assignment].append(resolution)
    batch: list[Resolution] = []
    checkpoints: dict[int, Checkpoint] = {}
    for assignment, resolutions in by_assignment.items():
        resolutions.sort(key=lambda resolution: resolution.job.record.offset)
        while resolutions:
            after = assignment.ledger.after(resolution.job.record.offset for resolution in resolutions)
            try:
                after.encode()
            except CheckpointOverflowError:
                resolutions.pop()
                continue
            checkpoints[assignment.number] = after
            batch += resolutions
            break
    return batch, checkpoints
