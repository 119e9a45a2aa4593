"""What an error means for a request."""

from __future__ import annotations

import pytest

from zimage_consumers.image_worker.stages.verdict import (
    DEPLOYMENT_CODES,
    Action,
    ExpiredError,
    WorkerCrashedError,
    backoff_s,
    judge,
)
from zimage_stream import errors
from zimage_stream.events.image_result import Code

END = Action.DEAD_LETTER


@pytest.mark.parametrize(
    ("error", "code", "ours"),
    [
        (errors.RequestError("steps", "1 to 50", 0), Code.INVALID_REQUEST, False),
        (errors.UnsupportedSizeError("width", "less", 2048), Code.UNSUPPORTED_SIZE, False),
        (errors.WireError("no Avro"), Code.UNDECODABLE, False),
        (errors.UnknownSchemaError("id 7"), Code.UNKNOWN_SCHEMA, True),
        (errors.OutOfMemoryError("too large"), Code.OUT_OF_MEMORY, False),
        (errors.IdConflictError("used before"), Code.ID_CONFLICT, False),
        (errors.StoreRejectedError("refused"), Code.STORE_REJECTED, True),
        (WorkerCrashedError("died"), Code.WORKER_CRASHED, False),
    ],
)
def test_a_permanent_error_ends_the_request_at_once(error: Exception, code: Code, ours: bool) -> None:
    verdict = judge(error, attempts=0, max_attempts=3)
    assert (verdict.action, verdict.code, verdict.deployment_fault) == (END, code, ours)


def test_the_codes_of_deployment_faults_match_the_verdicts() -> None:
    verdicts = [
        judge(error, 3, 3)
        for error in (
            errors.UnknownSchemaError("id 7"),
            errors.EngineError("odd"),
            errors.StoreRejectedError("refused"),
            errors.WireError("no Avro"),
            errors.OutOfMemoryError("too large"),
            errors.IdConflictError("used before"),
        )
    ]
    assert [verdict.code for verdict in verdicts if verdict.deployment_fault] == list(DEPLOYMENT_CODES)


def test_an_expired_request_ends_without_a_dead_letter() -> None:
    assert judge(ExpiredError(), 0, 3).action is Action.END


@pytest.mark.parametrize("error", [errors.EngineError("odd"), RuntimeError("odd"), MemoryError()])
def test_any_other_error_is_retried_until_the_attempts_are_spent(error: Exception) -> None:
    assert [judge(error, attempts, 3).action for attempts in (1, 2, 3)] == [Action.RETRY, Action.RETRY, END]
    last = judge(error, 3, 3)
    assert last.code is Code.GENERATION_FAILED
    assert last.deployment_fault


def test_waits_grow_and_are_bounded() -> None:
    waits = [backoff_s(attempts) for attempts in range(1, 12)]
    assert waits == sorted(waits)
    assert waits[0] == 0.5
    assert waits[-1] == 30.0
