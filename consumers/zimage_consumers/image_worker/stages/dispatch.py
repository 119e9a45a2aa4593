"""Putting the next batch on deck, marked before it can run."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from zimage_consumers.image_worker.device.batching import deck_has_room
from zimage_consumers.image_worker.device.generate import Batch, EngineThread
from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.group.publish import CommitRefusedError
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.deliver import Delivery
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.stages.verdict import ExpiredError, WorkerCrashedError
from zimage_consumers.image_worker.window.jobs import Failed, Job, LookedUp, Stage
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import MAX_MARKS, Mark
from zimage_stream.errors import RegistryUnavailableError

log = logging.getLogger(__name__)

UNDELIVERED_PIXELS = 64 << 20
"""Pictures held in memory while the store is slow or down: 192 MiB of RGB."""
REGISTRY_WAIT_S = 1.0
_EXPIRED = "it was not started before its expires_at"
_RECENT = 0.1
"""Weight of the newest commit in how long one takes."""


class Dispatcher:
    """Starts jobs, and keeps their marks. Kafka thread only.

    Args:
        max_batch: pictures in the largest batch.
    """

    def __init__(
        self,
        window: Window,
        scheduler: Scheduler,
        intake: Intake,
        engine: EngineThread,
        delivery: Delivery,
        *,
        max_attempts: int,
        max_batch: int,
    ) -> None:
        self._window = window
        self._scheduler = scheduler
        self._intake = intake
        self._engine = engine
        self._delivery = delivery
        self._max_attempts = max_attempts
        self._max_batch = max_batch
        self._pending_marks: dict[Job, Mark] = {}
        """Marks that have changed since the last commit of marks, and go out with the next one."""
        self._batches: dict[int, Batch] = {}
        self._asked: dict[int, set[Job]] = {}
        """Of the batches that are not on deck yet: the jobs for which the store has not answered."""
        self._ids = itertools.count(1)
        self._commit_marks_s = 0.0

    @property
    def quarantine_active(self) -> bool:
        """Whether a job runs that must have nothing beside it."""
        return any(job.runs_alone for job in self._window.open())

    def add(self, job: Job) -> None:
        """Have a job wait for its turn."""
        self._window.move(job, Stage.WAITING)
        if not job.leaving:
            self._scheduler.add(job)

    def expired(self, at: datetime) -> list[Failed]:
        """What has expired before it was started."""
        return [Failed(job, ExpiredError(_EXPIRED)) for job in self._scheduler.pop_expired(at)]

    def plan(self, session: Session, at: datetime | None) -> Failed | None:
        """Fill the engine and its deck.

        Args:
            at: the wall clock; ``None`` where it cannot be trusted to say that a request has expired.

        Returns:
            a job that was to run alone and cannot run.

        Raises:
            CommitRefusedError, ClientsLostError: marks could not be committed; nothing was started.
        """
        if self._scheduler.quarantine_due(time.monotonic()):
            if self._batches or self._window.open():
                return None
            return self._start_quarantined(session, at)
        chosen: list[list[Job]] = []
        while not self.quarantine_active and self._deck_has_room(chosen):
            jobs = self._scheduler.pop_batch(time.monotonic())
            if not jobs:
                break
            chosen.append(jobs)
        if chosen or self._pending_marks:
            self._start(session, [Batch(next(self._ids), tuple(jobs)) for jobs in chosen])
        return None

    def looked_up(self, found: LookedUp) -> bool:
        """The store has answered for a job of a batch, which goes on deck with the last answer.

        Returns:
            whether the answer counts: not where the batch was called off meanwhile.
        """
        batch = self._batches.get(found.batch_id)
        if batch is None:
            return False
        found.job.timings = found.job.timings.after("look up", found.elapsed_s)
        asked = self._asked[batch.id]
        asked.discard(found.job)
        if found.ended is not None:
            batch = replace(batch, jobs=tuple(job for job in batch.jobs if job is not found.job))
            self._batches[batch.id] = batch
        if not asked:
            del self._asked[batch.id]
            # Partitions may have gone meanwhile.
            jobs = tuple(job for job in batch.jobs if job.open and not job.gone)
            if jobs:
                self._engine.submit(replace(batch, jobs=jobs))
            else:
                del self._batches[batch.id]
        return True

    def batch_done(self, batch_id: int) -> None:
        """The engine has finished with a batch."""
        self._batches.pop(batch_id, None)

    def retry(self, job: Job, wait_s: float) -> None:
        """Run a job again later; its mark is taken back with the next commit of marks."""
        self._close(job, Mark(job.attempts, job.suspect))
        job.reset_for_retry(time.monotonic() + wait_s)
        self.add(job)

    def withhold(self, job: Job) -> None:
        """Nothing will come of the job for now: no drain and no rebalance waits for it, and its mark is taken
        back. A checkpoint has room for few, and who takes over tries it from the beginning."""
        if job.open:
            self._close(job, Mark(job.attempts, suspect=True) if job.suspect else Mark())

    def resolved(self, job: Job) -> None:
        """The job's terminal event is out, and its mark gone with it."""
        job.open = False
        self._pending_marks.pop(job, None)

    def sweep(self) -> None:
        """Let go of jobs whose partitions are gone; what of theirs still runs is discarded when it ends."""
        self._scheduler.sweep()
        self._pending_marks = {job: mark for job, mark in self._pending_marks.items() if not job.gone}

    def withdraw(self) -> None:
        """Start nothing more of partitions that are being given back: drop what waits, and take back from the
        deck each batch that has some of theirs in it; what the store had of it ends as it would."""
        self._scheduler.sweep()
        for batch in list(self._batches.values()):
            theirs = any(job.leaving for job in batch.jobs)
            if theirs and (batch.id in self._asked or self._engine.withdraw(batch.id)):
                del self._batches[batch.id]
                self._asked.pop(batch.id, None)
                for job in batch.jobs:
                    if job.open and not job.gone:
                        self._close(job, Mark(job.attempts, job.suspect))
                        self.add(job)

    def drop_engine_work(self) -> None:
        """What was on the engine or on deck will never end; what was generated already may."""
        self._batches.clear()
        self._asked.clear()
        for job in list(self._window.jobs(Stage.MARKED, Stage.GENERATING)):
            self._window.exit(job)

    def _deck_has_room(self, chosen: Collection[Sequence[Job]]) -> bool:
        """Whether another batch is to be put on deck."""
        # All may be of one partition, and a checkpoint has no room for more marks.
        started = len(self._window.open()) + sum(map(len, chosen))
        if started + self._max_batch > MAX_MARKS or self._undelivered() >= UNDELIVERED_PIXELS:
            return False
        batches = [batch.jobs for batch in self._batches.values()] + [*chosen]
        return deck_has_room(len(batches), sum(map(len, batches)), self._engine.image_s, self._commit_marks_s)

    def _start_quarantined(self, session: Session, at: datetime | None) -> Failed | None:
        """Run a job with nothing beside it, or say why it cannot run."""
        job = self._scheduler.pop_quarantined(time.monotonic())
        if job is None:
            return None
        judged = job.ever_started
        self._commit_marks(session, [job])
        try:
            self._decode_quarantined(job, None if judged else at)
        except RegistryUnavailableError as error:
            log.warning("it waits for its schema: %s", error, extra=job.log)
            job.ever_started = judged
            self.retry(job, REGISTRY_WAIT_S)
        except Exception as error:
            # Only the reading was dangerous. What ends this process before the answer is out is no more of
            # its doing: the next one could not read it any more, and would have no result for its author.
            self._close(job, Mark(job.attempts, job.suspect))
            return Failed(job, error)
        else:
            if job.suspect:
                batch = Batch(next(self._ids), (job,), probe=True)
                self._put(batch)
                self._delivery.look_up(batch.id, job)
            else:
                # The decoding was what had to be alone, and it is over: it waits like any other.
                job.decode_under_mark, job.ever_started = False, judged
                self._close(job, Mark(job.attempts))
                self.add(job)
        return None

    def _decode_quarantined(self, job: Job, at: datetime | None) -> None:
        """Have a job decoded under its own mark.

        Args:
            at: the wall clock, where expiry is to be judged.

        Raises:
            WorkerCrashedError: it has killed as many processes as it may.
            ExpiredError: it was not started in time.
            RegistryUnavailableError, and whatever it is refused for.
        """
        if job.attempts >= self._max_attempts:
            if job.request is None and job.attempts == self._max_attempts:
                # To answer its author somebody has to read it; if that kills too, nobody does.
                job.request = self._intake.decode(job.record)
            raise WorkerCrashedError(
                f"the worker process died {job.attempts} times while this request ran alone"
            )
        if job.request is None:
            self._intake.check(job)
        expires_at = job.decoded.expires_at
        if job.suspect and at is not None and expires_at is not None and expires_at <= at:
            raise ExpiredError(_EXPIRED)

    def _start(self, session: Session, batches: Sequence[Batch]) -> None:
        """Mark the jobs of these batches, and ask the store for their pictures meanwhile."""
        jobs = [job for batch in batches for job in batch.jobs]
        asked = [self._delivery.look_up(batch.id, job) for batch in batches for job in batch.jobs]
        try:
            self._commit_marks(session, jobs)
        except CommitRefusedError:
            for look_up in asked:
                look_up.cancel()
            raise
        # What the store says counts for nothing before the marks are in.
        for batch in batches:
            self._put(batch)

    def _put(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._asked[batch.id] = set(batch.jobs)

    def _commit_marks(self, session: Session, jobs: list[Job]) -> None:
        """Commit the marks of jobs about to start, and what other marks have become meanwhile."""
        # A batch that nobody wants any more may still run, and kill.
        others = self._window.open()
        alone = len(jobs) == 1 and not others and not self._batches
        marks = {job: mark for job, mark in self._pending_marks.items() if not job.gone}
        if jobs:
            # Whoever was alone so far is so no longer.
            marks |= {job: Mark(job.attempts, job.suspect, open=True) for job in others}
        marks |= {job: Mark(job.attempts, job.suspect, open=True, alone=alone) for job in jobs}
        started = time.monotonic()
        try:
            if marks:
                session.commit_marks(marks)
        except CommitRefusedError:
            for job in jobs:
                self._scheduler.add(job)
            raise
        failpoint("marked")
        self._pending_marks.clear()
        elapsed = time.monotonic() - started
        self._commit_marks_s += (elapsed - self._commit_marks_s) * _RECENT
        for job in jobs:
            job.timings = job.timings.after("mark", elapsed)
            job.ever_started = job.open = True
            self._window.move(job, Stage.MARKED)

    def _close(self, job: Job, mark: Mark) -> None:
        """Have the job's mark say that it runs no longer, from the next commit of marks on."""
        job.open = False
        self._pending_marks[job] = mark

    def _undelivered(self) -> int:
        """Pixels generated and not yet stored."""
        requests = (job.decoded for job in self._window.jobs(Stage.DELIVERING))
        return sum(request.width * request.height for request in requests)
