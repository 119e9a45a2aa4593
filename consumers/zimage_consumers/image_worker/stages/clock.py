"""Telling time that passed from a clock that was set."""

from __future__ import annotations

TOLERANCE_S = 2.0
SETTLE_S = 10.0


class ClockGuard:
    """Says whether wall-clock times can be judged now. A step of the clock must not expire a backlog
    before somebody could have set it right again.

    Args:
        wall_s, monotonic_s: both clocks now, long before anything is judged: a step between the two
            would else be taken for what the clock has always been.
    """

    def __init__(self, wall_s: float, monotonic_s: float) -> None:
        self._difference = wall_s - monotonic_s
        self._distrusted_until = monotonic_s

    def steady(self, wall_s: float, monotonic_s: float) -> bool:
        """Whether the wall clock has run as the monotonic one for the last ``SETTLE_S`` seconds."""
        difference = wall_s - monotonic_s
        if abs(difference - self._difference) > TOLERANCE_S:
            self._distrusted_until = monotonic_s + SETTLE_S
        self._difference = difference
        return monotonic_s >= self._distrusted_until
