from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.stages.gauges import OTHERS, desired_workers, queues
from zimage_stream.telemetry.metrics import MAX_TENANTS


def test_the_number_of_workers_that_a_backlog_needs() -> None:
    assert desired_workers(0, 0.5, 60) == 0
    assert desired_workers(10, 0, 60) == 1
    assert desired_workers(240, 0.5, 60) == 2


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 100), max_size=2 * MAX_TENANTS))
def test_queues_count_every_request_under_few_labels(waiting: dict[str, int]) -> None:
    shown = queues(Counter(waiting), by_tenant=True)
    assert sum(shown.values()) == sum(waiting.values())
    assert len(shown) <= MAX_TENANTS + 1
    if OTHERS in shown and OTHERS not in waiting:
        assert min(shown[name] for name in shown if name != OTHERS) >= max(
            count for name, count in waiting.items() if name not in shown
        )
    assert queues(Counter(waiting), by_tenant=False) == {"": sum(waiting.values())}
