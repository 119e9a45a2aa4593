"""Deadlines for waits."""

from __future__ import annotations

import time


class Deadline:
    """The end of a wait that starts when this object is created.

    Args:
        timeout_s: length of the wait in seconds; ``None`` means no limit.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = float("inf") if timeout_s is None else timeout_s
        self._at = time.monotonic() + self.timeout_s

    @property
    def passed(self) -> bool:
        """Whether the wait is over."""
        return time.monotonic() >= self._at

    def within(self, wait_s: float) -> float:
        """Return ``wait_s``, or the seconds that are left if they are fewer."""
        return min(wait_s, max(0.0, self._at - time.monotonic()))
