from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from zimage_consumers.results.follow import ResultFilter, follow
from zimage_stream import ImageResult, Progress, ProgressStage, ResultTimeoutError, Source, Status
from zimage_stream.deadline import Deadline

AT = datetime(2026, 1, 1, tzinfo=UTC)
RESULT = ImageResult(
    request_id="a",
    tenant="studio",
    batch_id="cats",
    status=Status.FAILED,
    source=Source(topic="t", partition=0, offset=0),
    requested_at=AT,
    completed_at=AT,
)


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (ResultFilter(), True),
        (ResultFilter(ids=frozenset("ab")), True),
        (ResultFilter(ids=frozenset("b")), False),
        (ResultFilter(batches=frozenset(["cats"]), tenants=frozenset(["studio"])), True),
        (ResultFilter(batches=frozenset(["cats"]), tenants=frozenset(["other"])), False),
        (ResultFilter(statuses=frozenset(["FAILED", "EXPIRED"])), True),
        (ResultFilter(statuses=frozenset(["SUCCEEDED"])), False),
    ],
)
def test_a_result_must_match_every_filter(wanted: ResultFilter, matches: bool) -> None:
    assert wanted.matches(RESULT) is matches


def event(request_id: str) -> Progress:
    return Progress(
        request_id=request_id,
        tenant="studio",
        batch_id="cats",
        source=RESULT.source,
        stage=ProgressStage.STARTED,
        at=AT,
    )


class Fake:
    """A reader of whatever it is given, and then of nothing."""

    reads = True

    def __init__(self, *events: object) -> None:
        self._events = list(events)
        self.topic = SimpleNamespace(connection_error=None, caught_up=True)

    def poll(self, timeout_s: float, request_ids: object = None) -> Any:
        return self._events.pop(0) if self._events else None


def followed(
    results: Fake, progress: Fake, wanted: ResultFilter, timeout_s: float | None = None
) -> list[object]:
    readers: Any = (results, progress)
    return list(follow(readers[0], wanted, until_end=False, timeout_s=timeout_s, progress=readers[1]))


def test_progress_of_requests_that_match_comes_beside_the_results() -> None:
    wanted = ResultFilter(ids=frozenset("a"), statuses=frozenset(["FAILED"]))
    seen = followed(Fake(None, RESULT), Fake(event("a"), event("b")), wanted)
    assert seen == [event("a"), RESULT]


def test_results_end_it_and_the_time_is_over_however_much_progress_there_is() -> None:
    class Endless(Fake):
        def poll(self, timeout_s: float, request_ids: object = None) -> Any:
            return event("a")

    wanted = ResultFilter(ids=frozenset("a"))
    assert RESULT in followed(Fake(RESULT), Endless(), wanted)
    with pytest.raises(ResultTimeoutError):
        followed(Fake(), Endless(), wanted, timeout_s=0.1)


def test_a_deadline_that_passes_while_it_is_checked_is_still_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Passing(Deadline):
        """Passes between two questions."""

        asked = 0

        @property
        def passed(self) -> bool:
            self.asked += 1
            return self.asked > 1

    monkeypatch.setattr("zimage_consumers.results.follow.Deadline", Passing)
    with pytest.raises(ResultTimeoutError):
        followed(Fake(), Fake(), ResultFilter(ids=frozenset("a")), timeout_s=1.0)
