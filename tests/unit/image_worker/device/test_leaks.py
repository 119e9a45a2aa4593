"""When memory that stays in use counts as a leak."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.device.leaks import SETTLE, LeakWatch

LIMIT = 1_000


@given(st.integers(0, 10**12), st.lists(st.integers(0, LIMIT), max_size=200))
def test_memory_that_varies_within_the_limit_is_not_a_leak(base: int, above: list[int]) -> None:
    watch = LeakWatch(LIMIT)
    assert all(watch.grown(base + more) is None for more in above)


@given(st.integers(0, 10**12), st.integers(LIMIT // 10, LIMIT))
def test_a_baseline_that_grows_batch_by_batch_is_reported_soon_after_the_limit(base: int, each: int) -> None:
    watch = LeakWatch(LIMIT)
    told = next(n for n in range(10_000) if watch.grown(base + n * each) is not None)
    # The minimum of the latest batches lags behind the newest batch.
    assert (told - SETTLE + 1) * each > LIMIT
    assert (told - SETTLE) * each <= LIMIT


def test_a_few_large_images_are_not_a_leak() -> None:
    watch = LeakWatch(LIMIT)
    held = [100] * SETTLE + [10**9] * (SETTLE - 1) + [100]
    assert all(watch.grown(each) is None for each in held * 5)


def test_the_growth_is_reported_in_bytes() -> None:
    watch = LeakWatch(LIMIT)
    grown = [watch.grown(each) for each in [500] * SETTLE + [500 + LIMIT + 1] * SETTLE]
    assert grown[-1] == LIMIT + 1
    assert grown[:-1] == [None] * (2 * SETTLE - 1)
