from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.kafka.partitions import stride_of, walk

COUNTS = st.integers(1, 300)


@given(count=COUNTS, start=st.integers(0, 1000))
def test_the_walk_visits_every_partition_before_any_twice(count: int, start: int) -> None:
    visited = list(itertools.islice(walk(count, start), 2 * count))
    assert visited[0] == start % count
    assert sorted(visited[:count]) == list(range(count))
    assert visited[count:] == visited[:count]


@given(count=st.integers(12, 300))
def test_the_stride_is_near_the_golden_ratio(count: int) -> None:
    stride = stride_of(count)
    assert math.gcd(stride, count) == 1
    assert abs(stride / count - 0.618) < 0.17


@pytest.mark.parametrize("workers", [2, 3, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("owner", ["neighbours", "every n-th"])
def test_consecutive_requests_go_to_different_workers(workers: int, owner: str) -> None:
    count = 48

    def worker_of(partition: int) -> int:
        return partition * workers // count if owner == "neighbours" else partition % workers

    visited = [worker_of(partition) for partition in itertools.islice(walk(count, 7), 20 * count)]
    longest = max(len(list(turns)) for _, turns in itertools.groupby(visited))
    assert longest == (2 if (workers, owner) == (2, "neighbours") else 1)
    # No worker gets much more than its share, even of a short burst.
    for begin in range(count):
        burst = visited[begin : begin + 2 * workers]
        assert max(burst.count(worker) for worker in set(burst)) <= 4
