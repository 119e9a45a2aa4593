"""The marks of started jobs: opened in a commit before a job can run, and closed in a later one.

Who is charged for a death by them is decided in :mod:`~zimage_consumers.image_worker.window.ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from zimage_consumers.image_worker.failpoints import failpoint
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.window.jobs import Job, Stage
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import Mark

_RECENT = 0.1
"""Weight of the newest commit in the moving average of their duration."""


class Marks:
    """Commits the marks of jobs, and collects changes until the next commit. Kafka thread only."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._pending: dict[Job, Mark] = {}
        """Marks that have changed since the last commit of marks."""
        self.commit_s = 0.0
        """Moving average of the seconds per commit of marks."""

    @property
    def pending(self) -> Collection[Job]:
        """Jobs whose marks have changed since the last commit of marks."""
        return self._pending.keys()

    def open(self, session: Session, jobs: Sequence[Job], batches_out: bool) -> None:
        """Commit open marks for jobs about to start, together with all pending changes.

        Args:
            batches_out: batches are on the engine, on deck, or on their way there.

        Raises:
            CommitRefusedError, ClientsLostError: the marks are not committed; nothing may start.
        """
        # A batch that is no longer wanted may still be running, and may still kill the process.
        others = self._window.open()
        alone = len(jobs) == 1 and not others and not batches_out
        marks = {job: mark for job, mark in self._pending.items() if not job.gone}
        if jobs:
            # A job that ran alone so far no longer does.
            marks |= {job: Mark(job.attempts, job.suspect, open=True) for job in others}
        marks |= {job: Mark(job.attempts, job.suspect, open=True, alone=alone) for job in jobs}
        began = time.monotonic()
        if marks:
            session.commit_marks(marks)
        failpoint("marked")
        self._pending.clear()
        elapsed = time.monotonic() - began
        self.commit_s += (elapsed - self.commit_s) * _RECENT
        for job in jobs:
            job.timings = job.timings.after("mark", elapsed)
            job.ever_started = job.open = True
            self._window.move(job, Stage.MARKED)

    def close(self, job: Job, mark: Mark) -> None:
        """Replace the job's open mark by this one, in the next commit of marks."""
        job.open = False
        self._pending[job] = mark

    def drop(self, job: Job) -> None:
        """Forget the job's mark: its checkpoint has resolved the offset."""
        job.open = False
        self._pending.pop(job, None)

    def sweep(self) -> None:
        """Drop the jobs whose partitions are gone."""
        self._pending = {job: mark for job, mark in self._pending.items() if not job.gone}
