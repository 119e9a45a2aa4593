"""When waiting ends."""

from __future__ import annotations

import time


class Deadline:
    """The end of a wait, counted from when this is made.

    Args:
        timeout_s: seconds; ``None``: there is no end.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = float("inf") if timeout_s is None else timeout_s
        self._at = time.monotonic() + self.timeout_s

    @property
    def passed(self) -> bool:
        """Whether nothing is to be waited for any more."""
        return time.monotonic() >= self._at

    def within(self, wait_s: float) -> float:
        """So many seconds, or as many as are left if they are fewer."""
        return min(wait_s, max(0.0, self._at - time.monotonic()))
