"""Whether a device's memory leaks. Pure."""

from __future__ import annotations

from collections import deque

SETTLE = 16
"""Batches that are looked at together: what one large picture leaves behind is no leak."""


class LeakWatch:
    """Compares what is in use after each batch with what the first batches left in use.

    The least of the latest ``SETTLE`` batches counts, against the least of the first ``SETTLE``: a
    baseline that grows, however much a single batch may hold for a while.

    Args:
        limit: bytes by which the baseline may grow.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._latest: deque[int] = deque(maxlen=SETTLE)
        self._first: int | None = None

    def grown(self, allocated: int) -> int | None:
        """Take in the bytes in use after a batch; returns the growth once it is past the limit."""
        self._latest.append(allocated)
        if len(self._latest) < SETTLE:
            return None
        least = min(self._latest)
        if self._first is None:
            self._first = least
        growth = least - self._first
        return growth if growth > self._limit else None
