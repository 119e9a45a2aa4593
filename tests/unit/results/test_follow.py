from __future__ import annotations

from datetime import UTC, datetime

import pytest

from zimage_consumers.results.follow import ResultFilter
from zimage_stream import ImageResult, Source, Status

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
