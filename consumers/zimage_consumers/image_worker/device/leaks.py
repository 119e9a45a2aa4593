"""Detects that a device's memory leaks. Pure."""

from __future__ import annotations

from collections import deque

SETTLE = 16
"""Batches whose minimum is compared: memory that one large image leaves behind is no leak."""


class LeakWatch:
    """Compares the memory in use after recent batches with that after the first ones.

    The minimum over the latest ``SETTLE`` batches is compared with the minimum over the first ``SETTLE``.
    This shows a growing baseline, however much a single batch may hold for a while.

    Args:
        limit: bytes by which the baseline may grow.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._latest: deque[int] = deque(maxlen=SETTLE)
        self._first: int | None = None

    def grown(self, allocated: int) -> int | None:
        """Add the bytes in use after a batch. Returns the growth once it exceeds the limit."""
        self._latest.append(allocated)
        if len(self._latest) < SETTLE:
            return None
        least = min(self._latest)
        if self._first is None:
            self._first = least
        growth = least - self._first
        return growth if growth > self._limit else None
