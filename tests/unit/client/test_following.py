"""Following progress until there are results, without a broker."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from zimage_stream import (
    BrokerUnavailableError,
    ImageResult,
    Progress,
    ProgressStage,
    ResultTimeoutError,
    Source,
    Status,
)
from zimage_stream.client.following import follow_progress
from zimage_stream.client.mailbox import Submission
from zimage_stream.deadline import Deadline

AT = datetime(2026, 1, 1, tzinfo=UTC)


def source(offset: int) -> Source:
    return Source(topic="requests", partition=0, offset=offset)


def event(request_id: str, offset: int = 0) -> Progress:
    return Progress(request_id=request_id, source=source(offset), stage=ProgressStage.STARTED, at=AT)


def result(request_id: str, offset: int = 0) -> ImageResult:
    return ImageResult(
        request_id=request_id,
        status=Status.FAILED,
        source=source(offset),
        requested_at=AT,
        completed_at=AT,
    )


class Fake:
    """A reader of whatever it is given, and then of nothing."""

    def __init__(self, *events: object, reads: bool = True, error: Exception | None = None) -> None:
        self._events = list(events)
        self.reads = reads
        self.topic = SimpleNamespace(connection_error=error)

    def poll(self, timeout_s: float, request_ids: object = None) -> Any:
        return self._events.pop(0) if self._events else None


def followed(
    results: Fake, progress: Fake, timeout_s: float | None = None, **wanted: Submission | None
) -> list[Progress]:
    readers: Any = (results, progress)
    return list(follow_progress(wanted, readers[0], readers[1], Deadline(timeout_s)))


def test_it_ends_when_every_request_has_its_result() -> None:
    progress = Fake(event("a"), event("b"), event("a"), event("stranger"), event("b"))
    results = Fake(None, result("stranger"), result("a"), None, None, None, result("b"))
    assert followed(results, progress, a=None, b=None) == [event("a"), event("b"), event("b")]
    assert followed(Fake(), Fake()) == []


def test_records_with_the_same_id_are_told_apart_by_their_places() -> None:
    submission = Submission("a", {}, source=source(7))
    progress = Fake(event("a", 3), event("a", 7))
    results = Fake(result("a", 3), None, None, result("a", 7))
    assert followed(results, progress, a=submission) == [event("a", 7)]


def test_without_progress_the_results_are_waited_for() -> None:
    assert followed(Fake(None, None, result("a")), Fake(reads=False), a=None) == []


def test_a_deadline_says_what_is_missing_and_why() -> None:
    with pytest.raises(ResultTimeoutError, match="a"):
        followed(Fake(), Fake(), 0.0, a=None)
    with pytest.raises(BrokerUnavailableError):
        followed(Fake(error=BrokerUnavailableError("gone")), Fake(), 0.0, a=None)
