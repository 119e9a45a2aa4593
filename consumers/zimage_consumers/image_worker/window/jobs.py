"""What travels along the message path: the job made of a record, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum, auto

from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_stream.engines.base import ImageSpec
from zimage_stream.events.image_result import Code, StoredImage
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.kafka.record import Record

_JOB_BYTES = 2_048
"""Of a record's objects, its job's and its request's, without what they hold."""
_PAIR_BYTES = sys.getsizeof(("", b"")) + 8


Span = tuple[float, float]
"""When a stage began and ended, in UNIX time."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How an attempt went, as far as it got. Made where the work is done, and kept by the Kafka thread.

    Attributes:
        started_at: when its generation began; an attempt without it is not charged.
        queued_ms, generate_ms, encode_ms, upload_ms: how long it waited, and what each stage took.
        spans: of its stages, by name, for its trace.
    """

    started_at: datetime | None = None
    queued_ms: float | None = None
    generate_ms: float | None = None
    encode_ms: float | None = None
    upload_ms: float | None = None
    spans: Mapping[str, Span] = field(default_factory=dict)

    def after(self, name: str, elapsed_s: float) -> Timings:
        """The same with a stage more, which has just ended."""
        end = time.time()
        return replace(self, spans={**self.spans, name: (end - elapsed_s, end)})

    def and_then(self, later: Timings) -> Timings:
        """The same with what is known of it later."""
        told = {name: value for name in _FIGURES if (value := getattr(later, name)) is not None}
        return replace(self, **told, spans={**self.spans, **later.spans})


_FIGURES = ("started_at", "queued_ms", "generate_ms", "encode_ms", "upload_ms")


class Stage(Enum):
    """How far a job in the window is."""

    FETCHED = auto()
    """Taken in; its record is not decoded yet."""
    WAITING = auto()
    """For its turn, for its retry, or to run with nothing beside it."""
    MARKED = auto()
    """Marked in the checkpoint: the store is asked for its picture, or it is on deck."""
    GENERATING = auto()
    """On the device."""
    DELIVERING = auto()
    """Its picture is made, and being encoded and uploaded."""
    ENDED = auto()
    """Its terminal event is to be published."""
    HELD_BACK = auto()
    """It failed for a reason that may be this deployment's, and takes no room in the window."""


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way. The Kafka thread writes it; others read what does not change once it is started,
    and whether it is gone.

    Attributes:
        assignment: of its partition; once that is gone, nothing of the job counts any more.
        request: ``None`` while undecoded; a suspect is decoded only under its own mark.
        tokens: length of its prompt for the model; 0 where no tokenizer is at hand.
        attempts: charged to it so far.
        suspect: it was running when a process died, so it runs alone.
        cautious: processes died here before they could mark anything, so it is decoded under its own mark.
        tried_again: it failed, was held back, and has its last chance now.
        cut: the brokers do not take its terminal event whole.
        arrival: its place in the order of arrival, given by the scheduler.
        started: it was started before, here or by a predecessor; expiry was judged then.
        not_before: monotonic time before which a retry does not start.
        timings: of the latest attempt.
        stage: where it is in the window, which alone writes this; ``None`` outside.
        open: its mark in the checkpoint says that it runs.
    """

    record: Record
    assignment: Assignment
    request: PromptRequest | None = None
    tokens: int = 0
    attempts: int = 0
    suspect: bool = False
    cautious: bool = False
    started: bool = False
    tried_again: bool = False
    not_before: float = 0.0
    arrival: int | None = None
    cut: bool = False
    timings: Timings = Timings()
    stage: Stage | None = None
    open: bool = False

    def begin_anew(self, not_before: float) -> None:
        """Forget the attempt that has failed; the next one starts at that monotonic time or later."""
        self.timings = Timings(queued_ms=self.timings.queued_ms, spans=self.timings.spans)
        self.not_before = not_before

    @property
    def size(self) -> int:
        """Bytes of memory that it takes, its record with it, near enough for a bound."""
        record = self.record
        headers = sum(
            _PAIR_BYTES + sys.getsizeof(name) + sys.getsizeof(value) for name, value in record.headers
        )
        return len(record.value or b"") + len(record.key or b"") + headers + _JOB_BYTES

    @property
    def gone(self) -> bool:
        """Whether its partition was given up. May be read by any thread."""
        return self.assignment.gone

    @property
    def leaving(self) -> bool:
        """Whether its partition is being given up, or was: nothing new of it starts."""
        return self.assignment.leaving or self.assignment.gone

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it."""
        return self.suspect or self.cautious

    @property
    def decoded(self) -> PromptRequest:
        """The request of a job that is past intake."""
        assert self.request is not None, "a job is decoded before it is scheduled"
        return self.request

    @property
    def requested_at(self) -> datetime:
        """When its author made it, else when the broker got it."""
        created = self.request.created_at if self.request else None
        return created or self.record.timestamp

    @property
    def spec(self) -> ImageSpec:
        """The picture to make."""
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
        """What every log line about it carries."""
        request = self.request
        return {
            "request_id": request.request_id if request else None,
            "tenant": request.tenant if request else None,
            "partition": self.record.partition,
            "offset": self.record.offset,
            "attempt": self.attempts + 1,
            # Taken out again by the log, unless telemetry.log_prompts is on.
            "prompt": request.prompt if request else None,
        }


@dataclass(frozen=True, slots=True)
class Stored:
    """The job's picture is in the store. ``reused``: it was there before this attempt."""

    job: Job
    image: StoredImage
    timings: Timings = Timings()
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The job has no picture, for this reason; the verdict decides what that means."""

    job: Job
    error: Exception
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The store was asked for the picture of a job in a batch. ``ended``: how the job ends without the
    engine; ``None`` where its picture is to be made."""

    batch_id: int
    job: Job
    elapsed_s: float
    ended: Stored | Failed | None


@dataclass(frozen=True, slots=True)
class Generating:
    """The engine has begun with these jobs."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The pictures of these jobs are made, and on their way to the store."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The engine has finished with a batch; its pictures may still be on their way to the store."""

    batch_id: int


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine cannot go on in this process. ``sick``: the known-good picture failed too."""

    error: Exception
    sick: bool


@dataclass(frozen=True, slots=True)
class MemoryLeaked:
    """The device's memory in use has grown by so many bytes beyond what any batch explains."""

    grown: int


Outcome = Stored | Failed | LookedUp | Generating | Generated | BatchDone | EngineLost | MemoryLeaked


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a job ends, ready to be published.

    Attributes:
        image: the picture, where there is one.
        code: why there is none.
        cause: the error behind the code, for people.
        ours: the reason may be this deployment's own, so the breaker counts it.
        retriable: the same request may succeed if it is sent again.
    """

    job: Job
    image: StoredImage | None = None
    code: Code | None = None
    cause: Exception | None = None
    ours: bool = False
    retriable: bool = False

    @property
    def dead(self) -> bool:
        """Whether a dead letter goes with it."""
        return self.code not in (None, Code.EXPIRED, Code.CANCELLED)


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)
