"""The window: the partitions that this worker holds, and the stage of each of their jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Stage

STARTED = (Stage.MARKED, Stage.GENERATING, Stage.DELIVERING)
UNDER_WAY = (*STARTED, Stage.ENDED)
"""Stages that end by themselves: a drain waits for them."""


class Window:
    """Owns the partitions held, and knows how far each of their jobs is. Kafka thread only.

    A partition leaves through :meth:`leave`, whatever the reason, and its jobs with it. The queues that jobs
    stand in pass over those that are gone, and let go of them when they are swept.

    Args:
        requests: the most requests in the window, shared evenly between the partitions.
        size: the most bytes, of records and what is made of them.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size
        self.assignments: dict[int, Assignment] = {}
        self._jobs: dict[Stage, set[Job]] = {stage: set() for stage in Stage}
        self.held_back_size = 0
        """Bytes of the jobs that are held back. They take no room from the others."""
        self.swept = True
        """No partition has left since the queues were swept."""

    # -- partitions

    def begin(self, assignment: Assignment) -> None:
        """Hold a partition."""
        self.assignments[assignment.number] = assignment

    def leave(self, numbers: Collection[int]) -> set[int]:
        """Hold these partitions no more: they and their jobs are gone. Returns those that were held."""
        mine = self.assignments.keys() & numbers
        for number in mine:
            self.assignments.pop(number).gone = True
        for jobs in self._jobs.values():
            jobs.difference_update([job for job in jobs if job.gone])
        self.held_back_size = sum(job.size for job in self._jobs[Stage.HELD_BACK])
        self.swept &= not mine
        return mine

    def to_pause(self) -> set[int]:
        """Partitions of which nothing more is to be fetched now: they leave or are stopped, their ledger is
        full, or they have had their share of the window and not half of it is free again."""
        shares = len(self.assignments)
        for each in self.assignments.values():
            each.fill(max(each.count * shares / self._requests, each.size * shares / self._size))
        return {number for number, each in self.assignments.items() if not each.fetchable}

    # -- jobs

    def enter(self, job: Job) -> None:
        """Take in a job that was fetched."""
        self._put(job, Stage.FETCHED)
        job.assignment.enters_window(job.size)

    def move(self, job: Job, stage: Stage) -> None:
        """Note how far a job is by now. Of one that is gone nothing is noted."""
        if job.gone or job.stage is None:
            return
        size = job.size
        if job.stage is Stage.HELD_BACK:
            self.held_back_size -= size
            job.assignment.enters_window(size)
        if stage is Stage.HELD_BACK:
            self.held_back_size += size
            job.assignment.leaves_window(size)
        self._jobs[job.stage].discard(job)
        self._put(job, stage)

    def exit(self, job: Job) -> None:
        """Forget a job: its terminal event is out, or does not come from here."""
        if job.gone or job.stage is None:
            return
        self._jobs[job.stage].discard(job)
        if job.stage is Stage.HELD_BACK:
            self.held_back_size -= job.size
        else:
            job.assignment.leaves_window(job.size)
        job.stage = None

    def jobs(self, *stages: Stage) -> Iterator[Job]:
        """The jobs in these stages, in no order."""
        for stage in stages:
            yield from self._jobs[stage]

    def count(self, *stages: Stage) -> int:
        """How many jobs are in these stages."""
        return sum(len(self._jobs[stage]) for stage in stages)

    @property
    def under_way(self) -> bool:
        """Whether anything is started, or has ended and is not published."""
        return any(self._jobs[stage] for stage in UNDER_WAY)

    @property
    def leaving_under_way(self) -> bool:
        """The same of the partitions that are being given back."""
        return any(job.leaving for job in self.jobs(*UNDER_WAY))

    def open(self) -> list[Job]:
        """The jobs whose marks are open: were this process to die now, they would be under suspicion."""
        return [job for job in self.jobs(*UNDER_WAY) if job.open]

    def _put(self, job: Job, stage: Stage) -> None:
        job.stage = stage
        self._jobs[stage].add(job)
