"""The message path, from top to bottom.

One turn of the Kafka thread: fetch records, collect what the engine and the uploads have finished, put the
next batch on deck, publish what is done. It waits for none of them longer than a poll.
``docs/architecture.md`` has a diagram.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterable

from zimage_consumers.dead_letters.release import read_releases
from zimage_consumers.image_worker.device.batching import BatchLimits
from zimage_consumers.image_worker.device.errors import EngineHungError, EngineLostError
from zimage_consumers.image_worker.device.generate import EngineThread, untold
from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.group.publish import CommitRefusedError
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.admission import Admission
from zimage_consumers.image_worker.stages.clock import ClockGuard
from zimage_consumers.image_worker.stages.deliver import Delivery
from zimage_consumers.image_worker.stages.dispatch import Dispatcher
from zimage_consumers.image_worker.stages.gauges import Gauges
from zimage_consumers.image_worker.stages.held_back import HeldBack, Releases
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.stages.outbox import MAX_RESOLUTIONS, Outbox
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.stages.terminal import Identity
from zimage_consumers.image_worker.stages.verdict import Action, backoff_s, judge
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import (
    BatchDone,
    EngineLost,
    Failed,
    Generated,
    Generating,
    Job,
    LookedUp,
    MemoryLeaked,
    Notice,
    Outcome,
    RequestCancelledError,
    Resolution,
    Stage,
    Stored,
    Timings,
    job_of,
    notice_of,
    now,
)
from zimage_consumers.image_worker.window.ledger import RECORDS_PER_TURN, OffsetStatus
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.engines.base import Engine
from zimage_stream.events.codec import Codec
from zimage_stream.events.progress import ProgressStage
from zimage_stream.events.rules import Limits
from zimage_stream.kafka.record import Record
from zimage_stream.settings import Settings
from zimage_stream.stores.base import ImageStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

BUSY_POLL_S, IDLE_POLL_S = 0.003, 0.1
BYTES_PER_TURN = 4 << 20


def poll_timeout_s(under_way: bool, quarantine_due: bool) -> float:
    """Seconds that a turn may wait for a record: none while there is anything else to do. Pure.

    Args:
        under_way: some request is being decoded, started, or ready to be published.
        quarantine_due: a request that must run alone is due; it is under way only once it has started.
    """
    return 0.0 if under_way or quarantine_due else IDLE_POLL_S


def recheck_services(health: Health, delivery: Delivery, outbox: Outbox) -> None:
    """Check services that were down and that no request is waiting for, or /readyz would never clear."""
    if not health.is_up("store"):
        delivery.recheck()
    if outbox.waits_for_schema:
        outbox.recheck()
    elif not health.is_up("registry"):
        health.up("registry")


class MessagePath:
    """Takes each record from its fetch to its terminal event. Kafka thread only.

    Args:
        engine: not loaded yet; it is loaded, used and closed on a thread of its own.
        slot: this worker's stable name.
        tell: receives notices of progress, without blocking; called from this thread and the engine's.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: ImageStore,
        codec: Codec,
        *,
        slot: str,
        tell: Callable[[Notice], None] = untold,
        health: Health,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        self._health = health
        self._metrics = metrics
        reported: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._delivery = Delivery(
            store,
            model=engine.model,
            public_base_url=settings.store.public_base_url,
            encode_threads=settings.worker.encode_threads,
            upload_threads=settings.worker.upload_threads,
            report=reported.put,
            health=health,
            metrics=metrics,
        )
        self.window = Window(settings.worker.window, settings.worker.window_bytes)
        batches = BatchLimits(settings.engine.max_batch)
        told = settings.worker.progress
        self.engine = EngineThread(
            engine, batches, self._delivery.deliver, reported.put, metrics, settings.engine,
            tell, told == "steps", told != "off",
        )  # fmt: skip
        self._scheduler = Scheduler(settings.scheduler.tenant_weights, batches)
        limits = Limits(settings.engine.max_pixels, settings.engine.allow_guidance)
        intake = Intake(codec, limits, engine.count_tokens)
        self._admission = Admission(intake, health, metrics)
        self._dispatcher = Dispatcher(
            self.window,
            self._scheduler,
            intake,
            self.engine,
            self._delivery,
            max_attempts=settings.worker.max_attempts,
            max_batch=settings.engine.max_batch,
        )
        releases = Releases(lambda: read_releases(settings))
        self._held_back = HeldBack(self.window, settings.worker.window_bytes, releases, health)
        identity = Identity(engine.model, engine.model_revision, slot)
        self._outbox = Outbox(settings.topics, codec, identity, health, metrics, tracer)
        self._outcomes = Outcomes(
            reported,
            self.window,
            self._admission,
            self._dispatcher,
            self._held_back,
            self._outbox,
            max_attempts=settings.worker.max_attempts,
            metrics=metrics,
            tell=tell,
        )
        self._gauges = Gauges(metrics, settings.telemetry)
        self._clock = ClockGuard(now().timestamp(), time.monotonic())
        self._accepting = True

    @property
    def leaked(self) -> bool:
        """Whether the device's memory has grown more than any batch explains; only a new process frees it."""
        return self._outcomes.leaked

    def can_answer(self) -> bool:
        """Whether an image could be stored and its result written; waits for the store.

        Raises:
            StoreError: the store responds, but accepts no objects until an operator acts.
        """
        return self._delivery.store_answers() and self._outbox.can_encode()

    def close(self) -> None:
        """Accept no more work."""
        self._delivery.close()

    def turn(self, session: Session) -> None:
        """Fetch records, and advance what is under way.

        Raises:
            EngineHungError, EngineLostError: the engine cannot continue in this process.
            ClientsLostError: the session is over.
        """
        if not self._under_way:
            recheck_services(self._health, self._delivery, self._outbox)
        self.advance(session, waits=not self._fetch(session))

    def advance(self, session: Session, waits: bool = True) -> None:
        """Advance what is under way without fetching anything new. Raises as :meth:`turn`.

        Args:
            waits: whether to wait briefly for an outcome of engine or store, if one is expected.
        """
        self._health.beat()
        self._sweep()
        if self.engine.overdue():
            raise EngineHungError("a batch takes far longer than its shape explains")
        try:
            session.claim()
            self._cancel(session)
            self._admit()
            # With work under way this is where a turn waits, so that finished work is published at once.
            self._outcomes.collect(BUSY_POLL_S if waits and self._under_way else 0.0)
            self._outcomes.retry(self._held_back.released())
            if self._accepting:
                self._plan(session)
                # The store has answered meanwhile: put those batches on deck before publishing.
                self._outcomes.collect(0.0)
            self._publish(session)
        except CommitRefusedError as error:
            log.info("a commit must wait for a rebalance: %s", error)
        self._gauges.sample(session, self.window, self._scheduler, self.engine.image_s)

    @property
    def _under_way(self) -> bool:
        return bool(self.window.under_way or self._admission)

    def _fetch(self, session: Session) -> int:
        """Fetch records, waiting for them where there is nothing else to do. Returns their number."""
        stopping = self._held_back.crowded or not self._accepting
        session.pause_only(set(self.window.assignments) if stopping else self.window.to_pause())
        if not self._health.is_up("kafka"):
            session.probe()
        wait_s = poll_timeout_s(self._under_way, self._scheduler.quarantine_due(time.monotonic()))
        fetched_bytes = 0
        for count in range(RECORDS_PER_TURN):
            # Check the window's room again before large records exceed it by too much.
            if fetched_bytes > BYTES_PER_TURN:
                return count
            if (record := session.poll(wait_s)) is None:
                return count
            failpoint("fetched")
            assignment = self.window.assignments.get(record.partition)
            if assignment is not None and assignment.ledger.observe(record.offset) is OffsetStatus.NEW:
                fetched_bytes += self._enter(assignment, record)
            if assignment is not None and assignment.ledger.full:
                # The next turn pauses it, before another of its records is fetched.
                return count + 1
            wait_s = 0.0
        return RECORDS_PER_TURN

    def _enter(self, assignment: Assignment, record: Record) -> int:
        """Make a job of a new record. Returns the bytes that it takes."""
        job = job_of(record, assignment)
        self.window.enter(job)
        self._outcomes.cancel(job)
        self._metrics.requests_taken.inc()
        self._outcomes.enqueue(job)
        return job.size

    def _cancel(self, session: Session) -> None:
        """End the requests that were cancelled. Those that wait further back in the log are fetched now."""
        for assignment, offset in session.cancellations.read():
            self._outcomes.cancel(self.window.find(assignment.number, offset))
        if self._accepting and not self._admission and len(self._outbox) < MAX_RESOLUTIONS:
            for record in session.cancellations.ahead.fetch():
                self._enter(self.window.assignments[record.partition], record)

    def _admit(self) -> None:
        """Decode and schedule fetched records, but not next to a suspect, or a death would be
        misattributed."""
        if self._dispatcher.quarantine_active:
            return
        for admitted in self._admission.admit(self._outbox.waits_for_schema):
            if isinstance(admitted, Failed):
                self._outcomes.fail(admitted)
            else:
                self._outcomes.retry(self._held_back.record_decoded())
                self._dispatcher.add(admitted)

    def _plan(self, session: Session) -> None:
        """Put the next batches on deck, and end jobs that cannot run."""
        at = now()
        steady = self._clock.steady(at.timestamp(), time.monotonic())
        if steady:
            for expired in self._dispatcher.expired(at):
                self._outcomes.fail(expired)
        failed = self._dispatcher.plan(session, at if steady else None)
        if failed is not None:
            self._outcomes.fail(failed)

    def _publish(self, session: Session) -> None:
        published = self._outbox.publish(session)
        for job in published.out:
            self._dispatcher.resolved(job)
            job.assignment.cancelled.pop(job.record.offset, None)
            self.window.exit(job)
        for job in published.withheld:
            self._dispatcher.withhold(job)
            self.window.exit(job)

    # -- partitions that leave, and the end

    def stop_starting(self) -> None:
        """Start nothing new from now on, and drop what is waiting."""
        self._accepting = False
        for each in self.window.assignments.values():
            each.leaving = True
        self._withdraw()

    def drain(self, session: Session, deadline: float) -> None:
        """Finish what is under way, until this monotonic time at the latest. Raises as :meth:`turn`."""
        while self.window.under_way and self._may_drain(deadline):
            self.turn(session)

    def give_back(self, session: Session, deadline: float) -> None:
        """Finish what is running of partitions being revoked, until the deadline; keep advancing the others.

        Runs inside a rebalance callback, where nothing can be polled.
        """
        self._withdraw()
        while self.window.leaving_under_way and self._may_drain(deadline):
            self.advance(session)

    def drop_engine_work(self) -> None:
        """Drop what was on the engine: it will never end. Images already generated may."""
        self._dispatcher.drop_engine_work()

    def _withdraw(self) -> None:
        self._admission.sweep()
        self._dispatcher.withdraw()

    def _sweep(self) -> None:
        """Drop the jobs of partitions that have left since the last turn."""
        if not self.window.swept:
            for stage in (self._admission, self._dispatcher, self._outbox, self._held_back):
                stage.sweep()
            self.window.swept = True

    def _may_drain(self, deadline: float) -> bool:
        can_publish = self._health.is_up("store") and not self._outbox.waits_for_schema
        return can_publish and time.monotonic() < deadline


class Outcomes:
    """Collects what engine and store report, and decides how each job continues. Kafka thread only.

    Args:
        reported: filled by other threads.
        max_attempts: attempts that a request has.
        tell: receives notices of progress.
    """

    def __init__(
        self,
        reported: queue.SimpleQueue[Outcome],
        window: Window,
        admission: Admission,
        dispatcher: Dispatcher,
        held_back: HeldBack,
        outbox: Outbox,
        *,
        max_attempts: int,
        metrics: Metrics,
        tell: Callable[[Notice], None],
    ) -> None:
        self._reported = reported
        self._tell = tell
        self._window = window
        self._admission = admission
        self._dispatcher = dispatcher
        self._held_back = held_back
        self._outbox = outbox
        self._max_attempts = max_attempts
        self._metrics = metrics
        self.leaked = False
        """Whether the engine has reported a leak."""

    def collect(self, wait_s: float) -> None:
        """Process all outcomes reported so far, waiting up to ``wait_s`` seconds for the first.

        Raises:
            EngineLostError: the engine cannot continue in this process.
        """
        try:
            outcome = self._reported.get(timeout=wait_s) if wait_s else self._reported.get_nowait()
            while True:
                self._process(outcome)
                outcome = self._reported.get_nowait()
        except queue.Empty:
            return

    def enqueue(self, job: Job) -> None:
        """Queue a job to be decoded, or to run alone."""
        if job.runs_alone:
            self._dispatcher.add(job)
        else:
            self._admission.add(job)

    def cancel(self, job: Job | None) -> None:
        """End a job if it was cancelled, at once or as soon as its stage allows."""
        if job is None or job.stage is None or job.stage is Stage.ENDED or job.cancelled is not None:
            return
        offset, cancelled = job.record.offset, job.assignment.cancelled
        if offset not in cancelled:
            return
        job.cancelled = RequestCancelledError(cancelled[offset], job.stage)
        if job.request is None:
            # Without its request a result cannot name it. It ends once it is decoded.
            return
        if job.stage is Stage.HELD_BACK:
            self._held_back.remove(job)
            self.fail(Failed(job, job.cancelled))
        elif self._dispatcher.call_off(job):
            self.fail(Failed(job, job.cancelled))

    def fail(self, failed: Failed) -> None:
        """Retry the job, hold it back, or end it, according to the verdict on its error."""
        job, error = failed.job, failed.error
        if job.cancelled is not None and job.request is not None:
            # Whoever cancelled it does not wait for another attempt.
            error = job.cancelled
        verdict = judge(error, job.attempts, self._max_attempts)
        if verdict.action is Action.RETRY:
            log.warning("the attempt failed and will be retried: %s", error, extra=job.log)
            self._metrics.attempts.labels("retried").inc()
            if job.request is not None:
                self._tell(notice_of(ProgressStage.RETRYING, [job], 0, job.request.steps))
            self._dispatcher.retry(job, backoff_s(job.attempts))
            return
        fault = verdict.deployment_fault
        resolution = Resolution(job, None, verdict.code, error, fault, verdict.retriable)
        if fault and self._held_back.holds_back(resolution):
            self._dispatcher.withhold(job)
        else:
            self._end(resolution)

    def retry(self, jobs: Iterable[Job]) -> None:
        """Give jobs that were held back their last attempt; their records may be decoded differently now."""
        for job in jobs:
            job.reset_for_retry(not_before=0.0)
            job.request, job.attempts = None, min(job.attempts, self._max_attempts - 1)
            job.last_chance = True
            self.enqueue(job)

    def _process(self, outcome: Outcome) -> None:
        match outcome:
            case LookedUp():
                if self._dispatcher.looked_up(outcome) and outcome.ended is not None:
                    self._process(outcome.ended)
            case BatchDone(batch_id):
                self._dispatcher.batch_done(batch_id)
            case EngineLost():
                raise EngineLostError(outcome)
            case MemoryLeaked(grown):
                log.error(
                    "the device's memory in use has grown by %.2f GB; after finishing what is running, a new "
                    "process starts without the leak", grown / 1e9,
                )  # fmt: skip
                self.leaked = True
            case Generating(jobs):
                self._move(jobs, Stage.GENERATING)
            case Generated(jobs):
                self._move(jobs, Stage.DELIVERING)
            case Stored(job, image, timings, reused) if not job.gone:
                self._record_attempt(job, timings)
                self._metrics.store_reused.inc(reused)
                self.retry(self._held_back.succeeded(job))
                self._end(Resolution(job, image=image))
            case Failed(job) if not job.gone and job.cancelled is not None:
                # Nobody waits for it any more, so no attempt is charged, whatever it failed of.
                self.fail(outcome)
            case Failed(job, _, timings) if not job.gone:
                self._record_attempt(job, timings)
                self.fail(outcome)
            case Stored(job) | Failed(job):
                log.info("discarded an outcome of a partition that was given up", extra=job.log)

    def _move(self, jobs: Iterable[Job], stage: Stage) -> None:
        for job in jobs:
            self._window.move(job, stage)

    def _record_attempt(self, job: Job, timings: Timings) -> None:
        """Record the end of an attempt; it is charged if its generation was started."""
        job.timings = job.timings.merged_with(timings)
        job.attempts += timings.started_at is not None

    def _end(self, resolution: Resolution) -> None:
        """Queue the job's terminal event for publication."""
        if isinstance(resolution.cause, RequestCancelledError):
            self._metrics.cancelled.labels(resolution.cause.met.name.lower()).inc()
        self._window.move(resolution.job, Stage.ENDED)
        self._outbox.add(resolution)
