"""What an error means for a request: the only place where this is decided."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from zimage_consumers.image_worker.window.jobs import RequestCancelledError
from zimage_stream.errors import (
    IdConflictError,
    OutOfMemoryError,
    RequestError,
    StoreRejectedError,
    UnknownSchemaError,
    UnsupportedSizeError,
    WireError,
    ZImageError,
)
from zimage_stream.events.image_result import Code


class WorkerCrashedError(ZImageError):
    """A request has crashed the worker process as often as it may."""


class ExpiredError(ZImageError):
    """The request was not started before its ``expires_at``."""

    def __init__(self) -> None:
        super().__init__("it was not started before its expires_at")


class IntakeError(ZImageError):
    """A request could not be checked because of a bug of ours; an unchecked request must not run."""


class Action(Enum):
    """What happens next to a failed request."""

    RETRY = auto()
    DEAD_LETTER = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one failed request.

    Attributes:
        code: code in its result and dead letter.
        deployment_fault: the deployment may be at fault.
        retriable: the same request may succeed if its author sends it again.
    """

    action: Action
    code: Code
    deployment_fault: bool = False
    retriable: bool = False


_PERMANENT: tuple[tuple[type[Exception], Verdict], ...] = (
    (UnsupportedSizeError, Verdict(Action.DEAD_LETTER, Code.UNSUPPORTED_SIZE)),
    (RequestError, Verdict(Action.DEAD_LETTER, Code.INVALID_REQUEST)),
    (UnknownSchemaError, Verdict(Action.DEAD_LETTER, Code.UNKNOWN_SCHEMA, deployment_fault=True)),
    (WireError, Verdict(Action.DEAD_LETTER, Code.UNDECODABLE)),
    (IdConflictError, Verdict(Action.DEAD_LETTER, Code.ID_CONFLICT)),
    (
        StoreRejectedError,
        Verdict(Action.DEAD_LETTER, Code.STORE_REJECTED, deployment_fault=True, retriable=True),
    ),
    (OutOfMemoryError, Verdict(Action.DEAD_LETTER, Code.OUT_OF_MEMORY, retriable=True)),
    (WorkerCrashedError, Verdict(Action.DEAD_LETTER, Code.WORKER_CRASHED)),
    (IntakeError, Verdict(Action.DEAD_LETTER, Code.GENERATION_FAILED, deployment_fault=True, retriable=True)),
    (ExpiredError, Verdict(Action.END, Code.EXPIRED)),
    (RequestCancelledError, Verdict(Action.END, Code.CANCELLED)),
)


DEPLOYMENT_CODES = (Code.UNKNOWN_SCHEMA, Code.GENERATION_FAILED, Code.STORE_REJECTED)
"""Codes whose reason may be a fault of the deployment."""


def judge(error: Exception, attempts: int, max_attempts: int) -> Verdict:
    """Judge what an error means for its request.

    Args:
        error: the error of this request alone, not one of its whole batch.
        attempts: attempts charged to the request, this one included.
        max_attempts: number of attempts it has.
    """
    for kind, verdict in _PERMANENT:
        if isinstance(error, kind):
            return verdict
    if attempts < max_attempts:
        return Verdict(Action.RETRY, Code.GENERATION_FAILED)
    return Verdict(Action.DEAD_LETTER, Code.GENERATION_FAILED, deployment_fault=True, retriable=True)


def backoff_s(attempts: int, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Seconds to wait before the next attempt: doubled each time, up to ``cap_s``."""
    return float(min(cap_s, base_s * 2 ** (attempts - 1)))
