"""Decides who may be at fault when requests fail: a producer, or this deployment. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Hashable
from typing import Generic, NamedTuple, TypeVar

from zimage_stream.events.image_result import Code

T = TypeVar("T")

LIMIT = 100
"""Requests that may end for one code before any request succeeds again."""
LIMIT_PER_SUBJECT = LIMIT // 2
"""Share of one schema or tenant in this limit: requests of others are still answered at once."""


class Cause(NamedTuple):
    """Why requests fail. ``subject``: the schema they name, or their tenant."""

    code: Code
    subject: Hashable


class Breaker(Generic[T]):
    """Keeps a faulty deployment from burying a backlog in the dead-letter topic.

    With a wrong registry, a broken model or a store that refuses everything, one request after the other
    fails. So only ``LIMIT`` requests may end for one code before any request succeeds again; the rest are
    held back. A success shows that the deployment works: the same number is then retried, and a request that
    fails again is itself at fault. Requests that do not fail are never stopped, whatever other producers
    send.
    """

    def __init__(self) -> None:
        self._ended: defaultdict[Code, set[tuple[Hashable, Hashable]]] = defaultdict(set)
        self._held: dict[Cause, deque[T]] = {}
        self._count: Counter[Code] = Counter()

    def held_count(self, code: Code) -> int:
        """Number of requests held back for this code."""
        return self._count[code]

    def fail(self, cause: Cause, request: Hashable, item: T) -> bool:
        """Record that a request failed. Returns whether it is held back.

        Args:
            request: identity of the request: one that is sent again counts once.
            item: what :meth:`succeed` and :meth:`release` return for it.
        """
        ended = self._ended[cause.code]
        known = (cause.subject, request)
        if known in ended:
            return False
        same = sum(subject == cause.subject for subject, _ in ended)
        if len(ended) < LIMIT and same < LIMIT_PER_SUBJECT:
            ended.add(known)
            return False
        self._held.setdefault(cause, deque()).append(item)
        self._count[cause.code] += 1
        return True

    def succeed(self, codes: Collection[Code]) -> list[T]:
        """Record a success, which rules out a fault of the deployment behind any of these codes.

        Returns:
            the items to retry, each of which ends if it fails again: at most ``LIMIT`` per code.
        """
        again = []
        for code in codes:
            self._ended.pop(code, None)
            room = LIMIT
            for cause in self._causes(code):
                if not room:
                    break
                taken = self._pop(cause, min(room, LIMIT_PER_SUBJECT))
                room -= len(taken)
                again += taken
        return again

    def release(self, code: Code) -> list[T]:
        """Stop holding back items for this code, and return all of them."""
        return [item for cause in self._causes(code) for item in self._pop(cause, self._count[code])]

    def discard(self, gone: Callable[[T], bool]) -> None:
        """Forget items that belong to other workers now."""
        for cause in list(self._held):
            kept = [item for item in self._pop(cause, len(self._held[cause])) if not gone(item)]
            if kept:
                self._held[cause] = deque(kept)
                self._count[cause.code] += len(kept)

    def _causes(self, code: Code) -> list[Cause]:
        return [cause for cause in self._held if cause.code is code] if self._count[code] else []

    def _pop(self, cause: Cause, most: int) -> list[T]:
        """Remove and return the oldest items of a cause; its rest then queues behind the other causes."""
        held = self._held.pop(cause)
        taken = [held.popleft() for _ in range(min(most, len(held)))]
        if held:
            self._held[cause] = held
        self._count[cause.code] -= len(taken)
        return taken
