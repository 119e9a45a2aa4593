"""The message path, from top to bottom.

One turn of the Kafka thread: take records in, collect what the engine and the uploads have finished,
put the next batch on deck, publish what is done. It waits for none of them longer than a poll.
``docs/architecture.md`` has the picture.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterable

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from zimage_consumers.dead_letters.release import read_releases
from zimage_consumers.image_worker.admission import Admission
from zimage_consumers.image_worker.assignment import Assignment
from zimage_consumers.image_worker.batching import BatchLimits
from zimage_consumers.image_worker.checkpoint import RECORDS_A_TURN, Mark, Taken
from zimage_consumers.image_worker.clock import ClockGuard
from zimage_consumers.image_worker.deliver import Delivery
from zimage_consumers.image_worker.dispatch import Dispatcher
from zimage_consumers.image_worker.exits import EngineHungError, EngineLostError, ExitCode
from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.gauges import Gauges
from zimage_consumers.image_worker.generate import EngineThread
from zimage_consumers.image_worker.held_back import HeldBack, Releases
from zimage_consumers.image_worker.intake import Intake, record_of
from zimage_consumers.image_worker.jobs import (
    BatchDone,
    EngineLost,
    Failed,
    Generated,
    Job,
    LookedUp,
    MemoryLeaked,
    Outcome,
    Record,
    Resolution,
    Stored,
    Timings,
    now,
)
from zimage_consumers.image_worker.outbox import Outbox
from zimage_consumers.image_worker.publish import ClientsLostError, CommitRefusedError, FencedError
from zimage_consumers.image_worker.roster import draw_nonce
from zimage_consumers.image_worker.schedule import Scheduler
from zimage_consumers.image_worker.session import Session
from zimage_consumers.image_worker.terminal import Identity
from zimage_consumers.image_worker.verdict import Action, backoff_s, judge
from zimage_stream.engines.base import Engine
from zimage_stream.events.codec import Codec
from zimage_stream.events.rules import Limits
from zimage_stream.kafka.clients import common_config
from zimage_stream.settings import Settings
from zimage_stream.stores.base import ImageStore
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import Tracer

log = logging.getLogger(__name__)

BUSY_POLL_S, IDLE_POLL_S = 0.003, 0.1
REJOIN_WAIT_S = 1.0
OUTAGE_WAIT_S = 1.0
FENCED_AGAIN_S = 60.0
BYTES_A_TURN = 4 << 20


def poll_timeout_s(under_way: bool, solitude_due: bool) -> float:
    """How long a turn may wait for a record: only while there is nothing else to do. Pure.

    Args:
        under_way: something is taken in, started or ready to be published.
        solitude_due: a request is to run by itself, which is under way only once it has started.
    """
    return 0.0 if under_way or solitude_due else IDLE_POLL_S


class Worker:
    """One process, one GPU, one member of the group.

    Args:
        engine: not loaded yet; loaded, used and closed on a thread of its own.
        slot: this worker's stable name.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        store: ImageStore,
        codec: Codec,
        *,
        slot: str,
        health: Health,
        metrics: Metrics,
        tracer: Tracer,
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._health = health
        self._metrics = metrics
        self._owner = draw_nonce(slot)
        self._admin = AdminClient(common_config(settings.kafka) | settings.kafka.extra)
        self._stop = threading.Event()
        self._stopped_at = 0.0
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._delivery = Delivery(
            store,
            model=engine.model,
            public_base_url=settings.store.public_base_url,
            encode_threads=settings.worker.encode_threads,
            upload_threads=settings.worker.upload_threads,
            report=self._outcomes.put,
            health=health,
            metrics=metrics,
        )
        batches = BatchLimits(settings.engine.max_batch)
        self._engine = EngineThread(
            engine,
            batches,
            self._delivery.deliver,
            self._outcomes.put,
            metrics,
            settings.engine,
        )
        self._scheduler = Scheduler(settings.scheduler.tenant_weights, batches)
        limits = Limits(settings.engine.max_pixels, settings.engine.allow_guidance)
        intake = Intake(codec, limits, engine.count_tokens)
        self._admission = Admission(intake, health, metrics)
        self._dispatcher = Dispatcher(
            self._scheduler,
            intake,
            self._engine,
            self._delivery,
            max_attempts=settings.worker.max_attempts,
            max_batch=settings.engine.max_batch,
        )
        identity = Identity(engine.model, engine.model_revision, slot)
        releases = Releases(lambda: read_releases(settings))
        self._held_back = HeldBack(settings.worker.window_bytes, releases, health)
        self._outbox = Outbox(
            settings.topics,
            codec,
            identity,
            health,
            metrics,
            tracer,
        )
        self._gauges = Gauges(metrics, settings.telemetry)
        self._clock = ClockGuard(now().timestamp(), time.monotonic())
        self._session: Session | None = None
        self._deadline: float | None = None
        self._code = ExitCode.DONE

    # -- life

    def stop(self) -> None:
        """Finish what runs, commit and leave; returns at once. Safe from a signal handler."""
        self._stopped_at = time.monotonic()
        self._stop.set()

    def stopping_for(self) -> float:
        """Seconds since :meth:`stop`; 0 before."""
        return time.monotonic() - self._stopped_at if self._stop.is_set() else 0.0

    def run(self, loaded: Callable[[], None] = lambda: None) -> ExitCode:
        """Serve until :meth:`stop`.

        Args:
            loaded: called once the engine can generate.

        Raises:
            ZImageError: it cannot start, since settings or model are wrong.
        """
        # Before the model, which takes long to load, and which nobody needs where nothing can be answered.
        while not (self._stop.is_set() or (self._delivery.store_answers() and self._outbox.can_encode())):
            self._stop.wait(OUTAGE_WAIT_S)
        # Before it, too: this frees a dead predecessor's transaction.
        session = self._take_slot()
        if session is None:
            return ExitCode.DONE
        self._engine.start()
        try:
            self._engine.wait_loaded()
            self._health.set_started()
            loaded()
            return self._serve(session)
        finally:
            self._delivery.close()
            self._engine.stop()

    def _take_slot(self) -> Session | None:
        """The first session, with its publisher started; ``None`` where we are stopped before that."""
        while not self._stop.is_set():
            session = self._open()
            try:
                session.start_publisher()
            except ClientsLostError as error:
                log.warning("the slot is not taken yet, trying again: %s", error)
                session.abandon()
                self._stop.wait(REJOIN_WAIT_S)
            else:
                return session
        return None

    def _serve(self, session: Session) -> ExitCode:
        fenced_at = float("-inf")
        while True:
            try:
                session.join()
                while not self._stop.is_set():
                    self._turn(session)
                self._leave(session)
                return self._code
            except EngineLostError as error:
                return self._end_without_engine(session, error)
            except EngineHungError as error:
                # The marks stay open: what ran is under suspicion.
                log.error("%s; only a new process can use the device", error)
                session.abandon()
                return ExitCode.HUNG
            except (ClientsLostError, KafkaException) as error:
                log.warning("both clients are thrown away and the group is joined anew: %s", error)
                session.abandon()
                if self._stop.is_set():
                    return self._code if session.clean else ExitCode.FAILED
                if isinstance(error, FencedError):
                    # Once may be our own transaction that the broker timed out. Twice is another process
                    # in our slot, and two that go on would fence each other for ever.
                    if time.monotonic() - fenced_at < FENCED_AGAIN_S:
                        log.error("another process uses slot %s; this one ends", self._slot)
                        return ExitCode.FENCED
                    fenced_at = time.monotonic()
                self._stop.wait(REJOIN_WAIT_S)
                session = self._open()

    def _open(self) -> Session:
        self._session = Session(
            self._settings,
            self._admin,
            slot=self._slot,
            owner=self._owner,
            give_up=self._stop.is_set,
            on_revoke=self._give_back,
            on_gone=self._drop,
            health=self._health,
            metrics=self._metrics,
        )
        return self._session

    def _leave(self, session: Session) -> None:
        """Finish what runs within the drain time, then let everything go cleanly."""
        self._deadline = time.monotonic() + self._settings.worker.drain_timeout_s
        self._admission.clear()
        self._dispatcher.withdraw(session.assignments.keys())
        while (self._dispatcher.busy or self._outbox) and self._may_drain(self._deadline):
            self._turn(session)
        session.close()

    def _end_without_engine(self, session: Session, error: EngineLostError) -> ExitCode:
        self._dispatcher.engine_is_gone()
        if not error.sick:
            # The marks stay open: what ran when the context was lost is under suspicion.
            log.error("the device context is lost; only a new process can use the device: %s", error)
            session.abandon()
            return ExitCode.CONTEXT_LOST
        log.error("the device is sick, the requests are given back: %s", error)
        self._health.hold("engine", f"the device is sick: {error}")
        try:
            self._leave(session)
        except (ClientsLostError, KafkaException) as lost:
            log.warning("the requests could not be given back, their marks stay open: %s", lost)
            session.abandon()
        return ExitCode.SICK

    # -- one turn

    def _turn(self, session: Session, poll: bool = True) -> None:
        self._health.beat()
        if self._engine.overdue():
            raise EngineHungError("a batch takes far longer than its shape explains")
        try:
            if not self._under_way:
                self._ask_again()
            taken = self._take_in(session) if poll else 0
            session.claim()
            self._admit()
            # With work under way this is where a turn waits: what has ended goes out at once.
            self._collect(BUSY_POLL_S if self._under_way and not taken else 0.0)
            self._try_again(self._held_back.released())
            if self._deadline is None:
                at = now()
                steady = self._clock.steady(at.timestamp(), time.monotonic())
                if steady:
                    self._fail_all(self._dispatcher.expired(at))
                failed = self._dispatcher.plan(session, at if steady else None)
                self._fail_all([failed] if failed is not None else ())
                # The store has answered while the marks were committed: on deck at once, not after what is
                # published now.
                self._collect(0.0)
            published = self._outbox.publish(session)
            for job in published.out:
                self._resolved(job)
            for job in published.withheld:
                self._withhold(job)
        except CommitRefusedError as error:
            log.info("a commit has to wait for the group: %s", error)
        self._gauges.sample(session, self._scheduler, self._engine.picture_s)

    @property
    def _under_way(self) -> bool:
        return bool(self._dispatcher.busy or self._outbox or self._admission)

    def _ask_again(self) -> None:
        """Nobody waits for a service any more that was down: without us /readyz would say so for ever."""
        if not self._health.is_up("store"):
            self._delivery.ask_again()
        if self._outbox.waits_for_schema:
            self._outbox.ask_again()
        elif not self._health.is_up("registry"):
            self._health.up("registry")

    def _take_in(self, session: Session) -> int:
        """Take what has been fetched, and wait for it where there is nothing else to do. Returns how many."""
        session.regulate(self._must_pause)
        if not self._health.is_up("kafka"):
            session.probe()
        wait_s = poll_timeout_s(self._under_way, self._scheduler.wants_solitude(time.monotonic()))
        taken_bytes = 0
        for count in range(RECORDS_A_TURN):
            # Large ones are not taken beyond what the window has room for before it is looked at again.
            if taken_bytes > BYTES_A_TURN:
                return count
            message = session.poll(wait_s)
            if message is None:
                return count
            record = record_of(message)
            failpoint("fetched")
            held = session.assignments.get(record.partition)
            if held is not None and held.ledger.take(record.offset) is Taken.NEW:
                self._take(held, record)
                taken_bytes += record.size
            if held is not None and held.ledger.full:
                # Paused before another record of it is taken.
                return count + 1
            wait_s = 0.0
        return RECORDS_A_TURN

    def _take(self, held: Assignment, record: Record) -> None:
        mark = held.ledger.mark(record.offset)
        job = Job(
            record,
            held,
            attempts=mark.attempts,
            suspect=mark.suspect,
            cautious=held.ledger.cautious,
            marked=mark != Mark(),
        )
        held.enters_window(record.size)
        self._metrics.requests_taken.inc()
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.alone:
            self._scheduler.add(job)
        else:
            self._admission.add(job)

    def _must_pause(self, held: Assignment) -> bool:
        """Whether a partition has its share of the window; it resumes at half."""
        assert self._session is not None
        worker, shares = self._settings.worker, len(self._session.assignments)
        filled = max(held.count * shares / worker.window, held.size * shares / worker.window_bytes)
        held.roomy = filled < (1.0 if held.roomy else 0.5)
        stopping = self._held_back.crowded or self._deadline is not None
        return stopping or not held.roomy or held.ledger.full

    def _admit(self) -> None:
        """Schedule what was fetched; nothing of it is decoded while a suspect runs, or a death would be
        blamed on the wrong one."""
        if self._dispatcher.alone:
            return
        for admitted in self._admission.admit(self._outbox.waits_for_schema):
            if isinstance(admitted, Failed):
                self._fail(admitted)
            else:
                self._try_again(self._held_back.could_be_read())
                self._scheduler.add(admitted)

    def _collect(self, wait_s: float) -> None:
        try:
            outcome = self._outcomes.get(timeout=wait_s) if wait_s else self._outcomes.get_nowait()
            while True:
                self._note(outcome)
                outcome = self._outcomes.get_nowait()
        except queue.Empty:
            return

    def _note(self, outcome: Outcome) -> None:
        match outcome:
            case LookedUp():
                if self._dispatcher.looked_up(outcome) and outcome.ended is not None:
                    self._note(outcome.ended)
            case BatchDone(batch_id):
                self._dispatcher.batch_done(batch_id)
            case EngineLost():
                raise EngineLostError(outcome)
            case MemoryLeaked(grown):
                log.error(
                    "the device's memory in use has grown by %.2f GB; finishing what runs, then a new "
                    "process begins with none of it", grown / 1e9,
                )  # fmt: skip
                self._code = ExitCode.LEAKED
                self.stop()
            case Generated(jobs):
                self._dispatcher.generated(jobs)
            case Stored(job, image, timings, reused) if not job.gone:
                self._attempted(job, timings)
                self._metrics.store_reused.inc(reused)
                self._try_again(self._held_back.worked(job))
                self._outbox.add(Resolution(job, image=image))
            case Failed(job, _, timings) if not job.gone:
                self._attempted(job, timings)
                self._fail(outcome)
            case Stored(job) | Failed(job):
                log.info("a completion of a partition given up is discarded", extra=job.log)

    def _attempted(self, job: Job, timings: Timings) -> None:
        """An attempt has ended; one that was started is charged."""
        job.timings = job.timings.and_then(timings)
        job.attempts += timings.started_at is not None
        self._dispatcher.delivered(job)

    def _fail_all(self, failed: Iterable[Failed]) -> None:
        for each in failed:
            self._fail(each)

    def _fail(self, failed: Failed) -> None:
        """Try the job again, hold it back, or have it end, as the verdict says."""
        job, error = failed.job, failed.error
        verdict = judge(error, job.attempts, self._settings.worker.max_attempts)
        if verdict.action is Action.RETRY:
            log.warning("the attempt failed and is made again: %s", error, extra=job.log)
            self._metrics.attempts.labels("retried").inc()
            self._dispatcher.retry(job, backoff_s(job.attempts))
            return
        resolution = Resolution(job, None, verdict.code, error, verdict.ours, verdict.retriable)
        if resolution.ours and self._held_back.takes(resolution):
            self._withhold(job)
        else:
            self._outbox.add(resolution)

    def _resolved(self, job: Job) -> None:
        """Its terminal event is out."""
        self._dispatcher.resolved(job)
        job.assignment.leaves_window(job.record.size)

    def _withhold(self, job: Job) -> None:
        """Its terminal event does not come, unless it is tried again."""
        self._dispatcher.withhold(job)
        job.assignment.leaves_window(job.record.size)

    def _try_again(self, jobs: Iterable[Job]) -> None:
        """What was held back begins once more, for its last attempt; its record may be read otherwise now."""
        for job in jobs:
            job.assignment.enters_window(job.record.size)
            job.begin_anew(not_before=0.0)
            job.request, job.attempts = None, min(job.attempts, self._settings.worker.max_attempts - 1)
            job.tried_again = True
            self._enqueue(job)

    # -- partitions that go

    def _give_back(self, numbers: Collection[int]) -> None:
        """Finish what runs of partitions being revoked, within the drain time, and go on with the rest.

        Runs inside a rebalance callback, where nothing can be polled.
        """
        session, partitions = self._session, frozenset(numbers)
        assert session is not None
        self._dispatcher.withdraw(partitions)
        deadline = self._deadline or time.monotonic() + self._settings.worker.drain_timeout_s
        while self._may_drain(deadline) and (
            self._dispatcher.runs_any_of(partitions) or self._outbox.holds_any_of(partitions)
        ):
            self._turn(session, poll=False)

    def _drop(self, numbers: Collection[int]) -> None:
        self._dispatcher.forget(numbers)
        self._outbox.forget(numbers)
        self._held_back.forget(numbers)

    def _may_drain(self, deadline: float) -> bool:
        answers = self._health.is_up("store") and not self._outbox.waits_for_schema
        return time.monotonic() < deadline and answers
