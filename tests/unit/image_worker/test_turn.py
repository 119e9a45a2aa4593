"""One turn of the Kafka thread."""

from __future__ import annotations

import pytest

from zimage_consumers.image_worker.worker import IDLE_POLL_S, poll_timeout_s


@pytest.mark.parametrize(
    ("under_way", "solitude_due", "wait_s"),
    [(False, False, IDLE_POLL_S), (True, False, 0.0), (False, True, 0.0), (True, True, 0.0)],
)
def test_it_waits_for_records_only_while_nothing_else_is_due(
    under_way: bool, solitude_due: bool, wait_s: float
) -> None:
    assert poll_timeout_s(under_way, solitude_due) == wait_s
