"""The window: the partitions that this worker holds, and the stage of each of their jobs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.jobs import Job, Stage

UNDER_WAY = (Stage.MARKED, Stage.GENERATING, Stage.DELIVERING, Stage.ENDED)
"""Stages that end by themselves: a drain waits for them."""


class Window:
    """Owns the partitions held, and tracks how far each of their jobs has got. Kafka thread only.

    A partition leaves through :meth:`leave`, whatever the reason, and its jobs leave with it. Queues of jobs
    skip those that are gone, and drop them when they are swept.

    Args:
        requests: largest number of requests in the window, shared evenly between the partitions.
        size: largest number of bytes, for records and what is made from them.
    """

    def __init__(self, requests: int, size: int) -> None:
        self._requests = requests
        self._size = size
        self.assignments: dict[int, Assignment] = {}
        self._jobs: dict[Stage, set[Job]] = {stage: set() for stage in Stage}
        self._by_offset: dict[tuple[int, int], Job] = {}
        self.held_back_size = 0
        """Bytes of the jobs held back. They take no room from the others."""
        self.swept = True
        """Whether no partition has left since the queues were last swept."""

    # -- partitions

    def begin(self, assignment: Assignment) -> None:
        """Start holding a partition."""
        self.assignments[assignment.number] = assignment

    def leave(self, numbers: Collection[int]) -> set[int]:
        """Stop holding these partitions: they and their jobs are gone. Returns those that were held."""
        mine = self.assignments.keys() & numbers
        for number in mine:
            self.assignments.pop(number).gone = True
        for jobs in self._jobs.values():
            jobs.difference_update([job for job in jobs if job.gone])
        self._by_offset = {at: job for at, job in self._by_offset.items() if not job.gone}
        self.held_back_size = sum(job.size for job in self._jobs[Stage.HELD_BACK])
        self.swept &= not mine
        return mine

    def to_pause(self) -> set[int]:
        """The partitions to pause: they are leaving or stopped, their ledger is full, or they have filled
        their share of the window and less than half of it is free again."""
        shares = len(self.assignments)
        for each in self.assignments.values():
            each.fill(max(each.count * shares / self._requests, each.size * shares / self._size))
        return {number for number, each in self.assignments.items() if not each.fetchable}

    # -- jobs

    def enter(self, job: Job) -> None:
        """Add a job that was fetched."""
        self._put(job, Stage.FETCHED)
        self._by_offset[job.record.partition, job.record.offset] = job
        job.assignment.enters_window(job.size)

    def move(self, job: Job, stage: Stage) -> None:
        """Record that a job has reached a stage. Does nothing for a job that is gone."""
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
        """Remove a job: its terminal event is published, or will not come from this worker."""
        if job.gone or job.stage is None:
            return
        self._jobs[job.stage].discard(job)
        del self._by_offset[job.record.partition, job.record.offset]
        if job.stage is Stage.HELD_BACK:
            self.held_back_size -= job.size
        else:
            job.assignment.leaves_window(job.size)
        job.stage = None

    def find(self, number: int, offset: int) -> Job | None:
        """The job of this record, if it is in the window."""
        return self._by_offset.get((number, offset))

    def jobs(self, *stages: Stage) -> Iterator[Job]:
        """The jobs in these stages, in no particular order."""
        for stage in stages:
            yield from self._jobs[stage]

    @property
    def under_way(self) -> bool:
        """Whether any job is started, or has ended but is not published."""
        return any(self._jobs[stage] for stage in UNDER_WAY)

    @property
    def leaving_under_way(self) -> bool:
        """Whether any such job belongs to a partition that is being given back."""
        return any(job.leaving for job in self.jobs(*UNDER_WAY))

    def open(self) -> list[Job]:
        """The jobs with open marks: if this process died now, they would become suspect."""
        return [job for job in self.jobs(*UNDER_WAY) if job.open]

    def _put(self, job: Job, stage: Stage) -> None:
        job.stage = stage
        self._jobs[stage].add(job)
