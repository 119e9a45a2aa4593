from __future__ import annotations

from datetime import UTC, datetime

import pytest

from zimage_consumers.results.follow import Wanted
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
        (Wanted(), True),
        (Wanted(ids=frozenset("ab")), True),
        (Wanted(ids=frozenset("b")), False),
        (Wanted(batches=frozenset(["cats"]), tenants=frozenset(["studio"])), True),
        (Wanted(batches=frozenset(["cats"]), tenants=frozenset(["other"])), False),
        (Wanted(statuses=frozenset(["FAILED", "EXPIRED"])), True),
        (Wanted(statuses=frozenset(["SUCCEEDED"])), False),
    ],
)
def test_all_kinds_of_choice_must_hold(wanted: Wanted, matches: bool) -> None:
    assert wanted.matches(RESULT) is matches
