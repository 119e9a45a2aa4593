"""Puts the next batch on deck, marked before it can run."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from zimage_consumers.image_worker.device.batching import deck_has_room
from zimage_consumers.image_worker.device.generate import Batch, EngineThread
from zimage_consumers.image_worker.group.publish import CommitRefusedError
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.stages.deliver import Delivery
from zimage_consumers.image_worker.stages.intake import Intake
from zimage_consumers.image_worker.stages.marks import Marks
from zimage_consumers.image_worker.stages.schedule import Scheduler
from zimage_consumers.image_worker.stages.verdict import ExpiredError
from zimage_consumers.image_worker.window.jobs import Failed, Job, LookedUp, Stage
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import MAX_MARKS, Mark
from zimage_stream.errors import RegistryUnavailableError

log = logging.getLogger(__name__)

UNDELIVERED_PIXELS = 64 << 20
"""Limit on images held in memory while the store is slow or down, in pixels: 192 MiB of RGB."""
REGISTRY_WAIT_S = 1.0


class Dispatcher:
    """Starts jobs and manages their marks. Kafka thread only.

    Args:
        max_attempts: attempts that a request has.
        max_batch: number of images in the largest batch.
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
        self._marks = Marks(window)
        self._batches: dict[int, Batch] = {}
        self._asked: dict[int, set[Job]] = {}
        """Jobs that the store has not answered for, by batch that is not on deck yet."""
        self._ids = itertools.count(1)
        self._marks.commit_s = 0.0

    @property
    def quarantine_active(self) -> bool:
        """Whether a job is running that must run alone."""
        return any(job.runs_alone for job in self._window.open())

    def add(self, job: Job) -> None:
        """Let a job wait for its turn."""
        self._window.move(job, Stage.WAITING)
        if not job.leaving:
            self._scheduler.add(job)

    def expired(self, at: datetime) -> list[Failed]:
        """The jobs that expired before they were started."""
        return [Failed(job, ExpiredError()) for job in self._scheduler.pop_expired(at)]

    def plan(self, session: Session, at: datetime | None) -> Failed | None:
        """Fill the engine and its deck.

        Args:
            at: wall-clock time; ``None`` where it cannot be trusted to expire requests.

        Returns:
            a job that was due to run alone but cannot run.

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
        if chosen or self._marks.pending:
            self._start(session, [Batch(next(self._ids), tuple(jobs)) for jobs in chosen])
        return None

    def looked_up(self, found: LookedUp) -> bool:
        """Process the store's answer for a job of a batch; the batch goes on deck with its last answer.

        Returns:
            whether the answer counts: it does not if the batch was called off in the meantime.
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
            # Partitions may have left in the meantime.
            jobs = tuple(job for job in batch.jobs if job.open and not job.gone)
            if jobs:
                self._engine.submit(replace(batch, jobs=jobs))
            else:
                del self._batches[batch.id]
        return True

    def batch_done(self, batch_id: int) -> None:
        """Record that the engine has finished a batch."""
        self._batches.pop(batch_id, None)

    def retry(self, job: Job, wait_s: float) -> None:
        """Run a job again later. The next commit of marks closes its mark."""
        self._marks.close(job, Mark(job.attempts, job.suspect))
        job.reset_for_retry(time.monotonic() + wait_s)
        self.add(job)

    def withhold(self, job: Job) -> None:
        """Stop treating the job as started, since it will not end for now: no drain or rebalance waits for
        it, and its mark is removed. A checkpoint has room for few marks; the next owner starts it afresh."""
        if job.open:
            self._marks.close(job, Mark(job.attempts, suspect=True) if job.suspect else Mark())

    def resolved(self, job: Job) -> None:
        """Forget the mark of a job whose terminal event is published."""
        self._marks.drop(job)

    def sweep(self) -> None:
        """Drop jobs whose partitions are gone. What is still running of them is discarded when it ends."""
        self._scheduler.sweep()
        self._marks.sweep()

    def withdraw(self) -> None:
        """Start nothing more of partitions that are being given back: drop waiting jobs, and withdraw from
        the deck every batch that contains some of theirs. Jobs the store had an image for end as usual."""
        self._scheduler.sweep()
        for batch in list(self._batches.values()):
            if any(job.leaving for job in batch.jobs):
                self._withdraw(batch)

    def call_off(self, job: Job) -> bool:
        """Stop a cancelled job that does not run yet.

        Returns:
            whether it can end now; otherwise it ends between two steps of its generation, or before its image
            is encoded or uploaded.
        """
        if job.stage is Stage.MARKED:
            for batch in [each for each in self._batches.values() if job in each.jobs]:
                self._withdraw(batch)
        return job.stage is Stage.WAITING and self._scheduler.remove(job)

    def _withdraw(self, batch: Batch) -> bool:
        """Take a batch off deck; its jobs wait again. Returns whether it had not started."""
        if batch.id not in self._asked and not self._engine.withdraw(batch.id):
            return False
        del self._batches[batch.id]
        self._asked.pop(batch.id, None)
        for job in batch.jobs:
            if job.open and not job.gone:
                self._marks.close(job, Mark(job.attempts, job.suspect))
                self._window.move(job, Stage.WAITING)
                if not job.leaving:
                    self._scheduler.put_back(job)
        return True

    def drop_engine_work(self) -> None:
        """Drop what was on the engine or on deck: it will never end. Images already generated may."""
        self._batches.clear()
        self._asked.clear()
        for job in list(self._window.jobs(Stage.MARKED, Stage.GENERATING)):
            self._window.exit(job)

    def _deck_has_room(self, chosen: Collection[Sequence[Job]]) -> bool:
        """Whether another batch should be put on deck."""
        # All may belong to one partition, and its checkpoint has room for no more marks.
        started = len(self._window.open()) + sum(map(len, chosen))
        if started + self._max_batch > MAX_MARKS or self._undelivered() >= UNDELIVERED_PIXELS:
            return False
        batches = [batch.jobs for batch in self._batches.values()] + [*chosen]
        return deck_has_room(len(batches), sum(map(len, batches)), self._engine.image_s, self._marks.commit_s)

    def _start_quarantined(self, session: Session, at: datetime | None) -> Failed | None:
        """Run a job alone, or return why it cannot run."""
        job = self._scheduler.pop_quarantined(time.monotonic())
        if job is None:
            return None
        ever_started = job.ever_started
        self._open_marks(session, [job])
        try:
            self._intake.check_quarantined(job, None if ever_started else at, self._max_attempts)
        except RegistryUnavailableError as error:
            log.warning("a request that must run alone waits for its schema: %s", error, extra=job.log)
            job.ever_started = ever_started
            self.retry(job, REGISTRY_WAIT_S)
        except Exception as error:
            # Only decoding was dangerous. If the process ends before the answer is published, this request
            # is not to blame: charged again, it could not be decoded any more, and its author would get no
            # result.
            self._marks.close(job, Mark(job.attempts, job.suspect))
            return Failed(job, error)
        else:
            if job.suspect:
                batch = Batch(next(self._ids), (job,), probe=True)
                self._put(batch)
                self._delivery.look_up(batch.id, job)
            else:
                # Only decoding had to happen alone, and it is done: the job now waits like any other.
                job.decode_under_mark, job.ever_started = False, ever_started
                self._marks.close(job, Mark(job.attempts))
                self.add(job)
        return None

    def _start(self, session: Session, batches: Sequence[Batch]) -> None:
        """Mark the jobs of these batches, and query the store for their images meanwhile."""
        jobs = [job for batch in batches for job in batch.jobs]
        asked = [self._delivery.look_up(batch.id, job) for batch in batches for job in batch.jobs]
        try:
            self._open_marks(session, jobs)
        except CommitRefusedError:
            for look_up in asked:
                look_up.cancel()
            raise
        # The store's answers do not count before the marks are committed.
        for batch in batches:
            self._put(batch)

    def _put(self, batch: Batch) -> None:
        self._batches[batch.id] = batch
        self._asked[batch.id] = set(batch.jobs)

    def _open_marks(self, session: Session, jobs: Sequence[Job]) -> None:
        """Mark jobs about to start; where the group refuses the commit, they go back to the scheduler."""
        try:
            self._marks.open(session, jobs, batches_out=bool(self._batches))
        except CommitRefusedError:
            for job in jobs:
                self._scheduler.put_back(job)
            raise

    def _undelivered(self) -> int:
        """Pixels generated and not yet stored."""
        requests = (job.decoded for job in self._window.jobs(Stage.DELIVERING))
        return sum(request.width * request.height for request in requests)
