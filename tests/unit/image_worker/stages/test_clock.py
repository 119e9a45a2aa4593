"""When the wall clock may decide that a request has expired."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.stages.clock import SETTLE_S, TOLERANCE_S, ClockGuard

STEPS = st.lists(st.floats(0.001, 5.0), min_size=1, max_size=50)


@given(STEPS, st.floats(-0.9, 0.9))
def test_a_clock_that_drifts_a_little_is_trusted(steps: list[float], drift: float) -> None:
    guard, at, wall = ClockGuard(1e9, 100.0), 100.0, 1e9
    for step in steps:
        at += step
        wall += step * (1 + drift * TOLERANCE_S / 5.0)
        assert guard.steady(wall, at)


@given(st.floats(TOLERANCE_S + 0.1, 1e6), st.booleans(), STEPS)
def test_after_a_step_in_either_direction_the_clock_must_settle(
    size: float, back: bool, steps: list[float]
) -> None:
    # Created before the step and queried only after it, as by a worker that was just starting.
    guard = ClockGuard(1e9, 99.0)
    wall = 1e9 + 1.0 + (-size if back else size)
    assert not guard.steady(wall, 100.0)
    at = 100.0
    for step in steps:
        at += step
        assert guard.steady(wall + at - 100.0, at) == (at >= 100.0 + SETTLE_S)
