"""How many images run together, and what running out of memory teaches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.device.batching import (
    GROW_AFTER,
    BatchLimits,
    deck_has_room,
    largest_batch,
    shape_of,
)
from zimage_consumers.image_worker.device.generate import hang_bound_s


@pytest.mark.parametrize(("side", "most"), [(1024, 1), (512, 8), (768, 3), (64, 8), (2048, 1)])
def test_the_largest_batch_of_a_size_fills_the_device(side: int, most: int) -> None:
    assert largest_batch(side, side, 8) == most


def test_requests_with_and_without_previews_share_a_batch() -> None:
    shapes = {shape_of(job(width=64, height=64, previews=previews).decoded, 9) for previews in range(4)}
    assert len(shapes) == 1


def test_a_batch_that_did_not_fit_is_halved_at_once_and_only_for_its_size() -> None:
    limits = BatchLimits(8)
    assert limits.did_not_fit(512, 512, 8) == 4
    assert limits.largest(512, 512) == 4
    assert limits.did_not_fit(512, 512, 4) == 2
    assert limits.largest(256, 256) == 8


def test_the_limit_grows_back_slowly_and_no_further_than_before() -> None:
    limits = BatchLimits(8)
    limits.did_not_fit(512, 512, 4)
    sizes = []
    for _ in range(7 * GROW_AFTER):
        size = limits.largest(512, 512)
        sizes.append(size)
        limits.fitted(512, 512, size)
    assert sizes == [size for size in range(2, 8) for _ in range(GROW_AFTER)] + [8] * GROW_AFTER


def test_small_batches_that_fit_say_nothing_about_large_ones() -> None:
    limits = BatchLimits(8)
    limits.did_not_fit(512, 512, 8)
    for _ in range(10 * GROW_AFTER):
        limits.fitted(512, 512, 3)
    assert limits.largest(512, 512) == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 8)), max_size=300))
def test_the_limit_never_falls_below_one(events: list[tuple[bool, int]]) -> None:
    limits = BatchLimits(8)
    for failed, size in events:
        if failed and size > 1:
            assert 1 <= limits.did_not_fit(512, 512, size) < size
        else:
            limits.fitted(512, 512, size)
        assert 1 <= limits.largest(512, 512) <= 8


def test_a_batch_may_take_longer_the_more_work_it_contains() -> None:
    small, large = job(width=64, height=64), job(width=2048, height=2048, steps=16)
    assert hang_bound_s([small] * 8, 300) == 300
    assert hang_bound_s([large], 300) == pytest.approx(2400)


@given(st.integers(0, 200), st.floats(0.05, 10.0), st.floats(0.0, 0.03))
def test_a_device_slower_than_commits_has_one_batch_on_deck(
    images: int, image_s: float, commit_marks_s: float
) -> None:
    assert deck_has_room(0, 0, image_s, commit_marks_s)
    assert deck_has_room(1, images, image_s, commit_marks_s)
    assert not deck_has_room(2, 2 + images, image_s, commit_marks_s)


def test_a_device_faster_than_commits_has_more_batches_on_deck_up_to_a_limit() -> None:
    assert deck_has_room(2, 16, 0.000_5, 0.01)
    assert not deck_has_room(9, 61, 0.000_5, 0.01)
    assert not deck_has_room(8, 64, 0.0, 0.01)
    assert not deck_has_room(8, 64, 1e-9, 1.0)
    # Nothing is known before the first batch.
    assert not deck_has_room(2, 2, 0.0, 0.01)
