"""What travels along the message path: the job made from a record, and the outcomes of its stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_stream.checkpoint import Mark
from zimage_stream.engines.base import Encode, ImageSpec
from zimage_stream.errors import ZImageError
from zimage_stream.events.image_result import Code, Source, StoredImage
from zimage_stream.events.progress import ProgressStage
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.kafka.record import Record

_JOB_BYTES = 2_048
"""Bytes of the objects of a record, its job and its request, without their contents."""
_PAIR_BYTES = sys.getsizeof(("", b"")) + 8


Span = tuple[float, float]
"""Start and end of a stage, in UNIX time."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Timings of one attempt, as far as it got. Made where the work is done, and kept by the Kafka thread.

    Attributes:
        started_at: when its generation began; an attempt without it is not charged.
        queued_ms, generate_ms, encode_ms, upload_ms: wait before generation, and duration of each stage.
        spans: spans of its stages by name, for its trace.
    """

    started_at: datetime | None = None
    queued_ms: float | None = None
    generate_ms: float | None = None
    encode_ms: float | None = None
    upload_ms: float | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)

    def after(self, name: str, elapsed_s: float) -> Timings:
        """A copy with one more stage, which has just ended."""
        end = time.time()
        return replace(self, spans={**self.spans, name: (end - elapsed_s, end)})

    def merged_with(self, later: Timings) -> Timings:
        """A copy that includes what became known later."""
        known = {name: value for name in _FIGURES if (value := getattr(later, name)) is not None}
        return replace(self, **known, spans={**self.spans, **later.spans})


_FIGURES = ("started_at", "queued_ms", "generate_ms", "encode_ms", "upload_ms")


class Stage(Enum):
    """How far a job in the window has got."""

    FETCHED = auto()
    """Fetched; its record is not decoded yet."""
    WAITING = auto()
    """Waiting for its turn, for its retry, or to run in quarantine."""
    MARKED = auto()
    """Marked in the checkpoint: the store is being queried for its image, or it is on deck."""
    GENERATING = auto()
    """Running on the device."""
    DELIVERING = auto()
    """Its image is generated, and being encoded and uploaded."""
    ENDED = auto()
    """Its terminal event is ready to be published."""
    HELD_BACK = auto()
    """Held back: it failed for a reason that may be the deployment's. Takes no room in the window."""


class RequestCancelledError(ZImageError):
    """The request was cancelled.

    Args:
        reason: the reason given with the cancellation.
        met: how far the request had got.
    """

    def __init__(self, reason: str | None, met: Stage) -> None:
        super().__init__(f"it was cancelled: {reason}" if reason else "it was cancelled")
        self.met = met


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. The Kafka thread writes it; other threads read only whether it is still wanted,
    and what does not change once it is started.

    Attributes:
        assignment: the assignment of its partition; once that is gone, nothing about the job counts.
        request: ``None`` while undecoded; a suspect is decoded only under its own mark.
        tokens: length of its prompt in the model's tokens; 0 where no tokenizer is available.
        attempts: attempts charged to it so far.
        suspect: it was running when a process died, so it runs alone.
        decode_under_mark: processes died before they marked anything here, so it gets a mark of its own even
            for decoding.
        last_chance: it failed, was held back, and is on its last attempt.
        cut: the brokers refused its terminal event at full size.
        arrival: its position in the order of arrival, set by the scheduler.
        ever_started: it was started before, by this process or a predecessor; its expiry was judged then.
        not_before: monotonic time before which a retry does not start.
        timings: timings of the latest attempt.
        cancelled: how it ends, since it was cancelled; ``None`` if it was not.
        stage: its stage in the window, which alone writes this; ``None`` outside the window.
        open: its mark in the checkpoint says that it is running.
    """

    record: Record
    assignment: Assignment
    request: PromptRequest | None = None
    tokens: int = 0
    attempts: int = 0
    suspect: bool = False
    decode_under_mark: bool = False
    ever_started: bool = False
    last_chance: bool = False
    not_before: float = 0.0
    arrival: int | None = None
    cut: bool = False
    timings: Timings = Timings()
    cancelled: RequestCancelledError | None = None
    stage: Stage | None = None
    open: bool = False

    def reset_for_retry(self, not_before: float) -> None:
        """Discard the failed attempt; the next one starts at this monotonic time or later."""
        self.timings = Timings(queued_ms=self.timings.queued_ms, spans=self.timings.spans)
        self.not_before = not_before

    @property
    def size(self) -> int:
        """Bytes of memory that it takes together with its record, estimated closely enough for a bound."""
        record = self.record
        headers = sum(
            _PAIR_BYTES + sys.getsizeof(name) + sys.getsizeof(value) for name, value in record.headers
        )
        return len(record.value or b"") + len(record.key or b"") + headers + _JOB_BYTES

    @property
    def gone(self) -> bool:
        """Whether its partition was given up. Any thread may read it."""
        return self.assignment.gone

    @property
    def unwanted(self) -> bool:
        """Whether its image would be discarded. Any thread may read it."""
        return self.gone or self.cancelled is not None

    @property
    def leaving(self) -> bool:
        """Whether its partition is being or was given up: nothing new of it starts."""
        return self.assignment.leaving or self.assignment.gone

    @property
    def runs_alone(self) -> bool:
        """Whether nothing else may run at the same time."""
        return self.suspect or self.decode_under_mark

    @property
    def decoded(self) -> PromptRequest:
        """The request of a job that has passed intake."""
        assert self.request is not None, "a job is decoded before it is scheduled"
        return self.request

    @property
    def requested_at(self) -> datetime:
        """When its author created it, else when the broker received it."""
        created = self.request.created_at if self.request else None
        return created or self.record.timestamp

    @property
    def spec(self) -> ImageSpec:
        """The image to generate."""
        request = self.decoded
        return ImageSpec(
            prompt=request.prompt,
            width=request.width,
            height=request.height,
            steps=request.steps,
            guidance_scale=float(request.guidance_scale),
            seed=request.chosen_seed,
        )

    @property
    def log(self) -> dict[str, object]:
        """Fields of every log line about it."""
        request = self.request
        return {
            "request_id": request.request_id if request else None,
            "tenant": request.tenant if request else None,
            "partition": self.record.partition,
            "offset": self.record.offset,
            "attempt": self.attempts + 1,
            # The log drops it, unless telemetry.log_prompts is on.
            "prompt": request.prompt if request else None,
        }


def job_of(record: Record, assignment: Assignment) -> Job:
    """A job made of a new record, with what its mark says of earlier attempts."""
    mark = assignment.ledger.mark(record.offset)
    return Job(
        record,
        assignment,
        attempts=mark.attempts,
        suspect=mark.suspect,
        decode_under_mark=assignment.ledger.decode_under_mark,
        ever_started=mark != Mark(),
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """The job's image is in the store. ``reused``: it was there before this attempt."""

    job: Job
    image: StoredImage
    timings: Timings = Timings()
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has no image, for this reason; the verdict decides what follows."""

    job: Job
    error: Exception
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The store has answered for a job in a batch. ``ended``: how the job ends without the engine; ``None``
    where its image has to be generated."""

    batch_id: int
    job: Job
    elapsed_s: float
    ended: Stored | Failed | None


@dataclass(frozen=True, slots=True)
class Generating:
    """The engine has started on these jobs."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The images of these jobs are generated, and on their way to the store."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The engine has finished a batch; its images may still be on their way to the store."""

    batch_id: int


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine cannot continue in this process. ``sick``: the known-good image failed too."""

    error: Exception
    sick: bool


@dataclass(frozen=True, slots=True)
class MemoryLeaked:
    """The device's memory in use has grown by this many bytes more than any batch explains."""

    grown: int


Outcome = Stored | Failed | LookedUp | Generating | Generated | BatchDone | EngineLost | MemoryLeaked


@dataclass(frozen=True, slots=True)
class Notice:
    """What progress says of some requests. Made on the thread where it happens.

    Attributes:
        subjects: the requests, and where their records are.
        step, steps: steps of their generation that are done, and in all.
        at: when it happened.
        previews: what makes the previews, by the place of the request's record.
    """

    stage: ProgressStage
    subjects: tuple[tuple[Source, PromptRequest], ...]
    step: int
    steps: int
    at: datetime
    previews: Mapping[Source, Encode] = field(default_factory=dict)


def notice_of(
    stage: ProgressStage,
    jobs: Iterable[Job],
    step: int,
    steps: int,
    previews: Mapping[Source, Encode] | None = None,
) -> Notice:
    """A notice of something that happens now to those of these jobs that are still wanted."""
    subjects = tuple((job.record.source, job.decoded) for job in jobs if not job.unwanted)
    return Notice(stage, subjects, step, steps, now(), previews or {})


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a job ends, ready to be published.

    Attributes:
        image: the image, where there is one.
        code: why there is none.
        cause: the error behind the code, for people.
        deployment_fault: the deployment may be at fault, so the breaker counts it.
        retriable: the same request may succeed if it is sent again.
    """

    job: Job
    image: StoredImage | None = None
    code: Code | None = None
    cause: Exception | None = None
    deployment_fault: bool = False
    retriable: bool = False

    @property
    def dead(self) -> bool:
        """Whether a dead letter is published with it."""
        return self.code not in (None, Code.EXPIRED, Code.CANCELLED)


def now() -> datetime:
    """The current wall-clock time, in UTC."""
    return datetime.now(UTC)
