"""Tells elapsed time from a step of the wall clock."""

from __future__ import annotations

TOLERANCE_S = 2.0
SETTLE_S = 10.0


class ClockGuard:
    """Decides whether wall-clock times can be trusted now. A step of the clock must not expire a backlog
    before an operator has had a chance to correct it.

    Args:
        wall_s, monotonic_s: both clocks now, well before anything is judged: a step between the two readings
            would otherwise pass for their normal difference.
    """

    def __init__(self, wall_s: float, monotonic_s: float) -> None:
        self._difference = wall_s - monotonic_s
        self._distrusted_until = monotonic_s

    def steady(self, wall_s: float, monotonic_s: float) -> bool:
        """Whether the wall clock has kept pace with the monotonic one for the last ``SETTLE_S`` seconds."""
        difference = wall_s - monotonic_s
        if abs(difference - self._difference) > TOLERANCE_S:
            self._distrusted_until = monotonic_s + SETTLE_S
        self._difference = difference
        return monotonic_s >= self._distrusted_until
