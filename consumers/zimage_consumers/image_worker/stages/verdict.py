"""What an error means for a request: one table, applied nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

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
    """A request took the process down with it as often as it may."""


class ExpiredError(ZImageError):
    """The request was not started before its ``expires_at``."""


class IntakeError(ZImageError):
    """A request could not be checked, for a mistake of ours; unchecked, none may run."""


class Action(Enum):
    """What happens to the request next."""

    RETRY = auto()
    DEAD_LETTER = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one failed request.

    Attributes:
        code: what its result and dead letter say.
        ours: the reason may be this deployment's own.
        retriable: the same request may succeed if its author sends it again.
    """

    action: Action
    code: Code
    ours: bool = False
    retriable: bool = False


_PERMANENT: tuple[tuple[type[Exception], Verdict], ...] = (
    (UnsupportedSizeError, Verdict(Action.DEAD_LETTER, Code.UNSUPPORTED_SIZE)),
    (RequestError, Verdict(Action.DEAD_LETTER, Code.INVALID_REQUEST)),
    (UnknownSchemaError, Verdict(Action.DEAD_LETTER, Code.UNKNOWN_SCHEMA, ours=True)),
    (WireError, Verdict(Action.DEAD_LETTER, Code.UNDECODABLE)),
    (IdConflictError, Verdict(Action.DEAD_LETTER, Code.ID_CONFLICT)),
    (StoreRejectedError, Verdict(Action.DEAD_LETTER, Code.STORE_REJECTED, ours=True, retriable=True)),
    (OutOfMemoryError, Verdict(Action.DEAD_LETTER, Code.OUT_OF_MEMORY, retriable=True)),
    (WorkerCrashedError, Verdict(Action.DEAD_LETTER, Code.WORKER_CRASHED)),
    (IntakeError, Verdict(Action.DEAD_LETTER, Code.GENERATION_FAILED, ours=True, retriable=True)),
    (ExpiredError, Verdict(Action.END, Code.EXPIRED)),
)


OURS = (Code.UNKNOWN_SCHEMA, Code.GENERATION_FAILED, Code.STORE_REJECTED)
"""Codes whose reason may be this deployment's own."""


def judge(error: Exception, attempts: int, max_attempts: int) -> Verdict:
    """What a request's error means.

    Args:
        error: what happened; alone, so it is this request's and not a neighbour's.
        attempts: charged to it, this one included.
        max_attempts: how many it has.
    """
    for kind, verdict in _PERMANENT:
        if isinstance(error, kind):
            return verdict
    if attempts < max_attempts:
        return Verdict(Action.RETRY, Code.GENERATION_FAILED)
    return Verdict(Action.DEAD_LETTER, Code.GENERATION_FAILED, ours=True, retriable=True)


def backoff_s(attempts: int, base_s: float = 0.5, cap_s: float = 30.0) -> float:
    """Seconds to wait before the next attempt: doubled each time, up to the cap."""
    return float(min(cap_s, base_s * 2 ** (attempts - 1)))
