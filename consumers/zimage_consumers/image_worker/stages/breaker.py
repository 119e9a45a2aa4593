"""Whose fault it is when requests fail, one producer's or this deployment's. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Hashable
from typing import Generic, NamedTuple, TypeVar

from zimage_stream.events.image_result import Code

T = TypeVar("T")

LIMIT = 100
"""Requests that may end for one code before anything succeeds again."""
LIMIT_OF_ONE = LIMIT // 2
"""Of these, those of one schema or tenant: another one's still get their answer at once."""


class Cause(NamedTuple):
    """What requests fail of. ``subject``: the schema that they name, or their tenant."""

    code: Code
    subject: Hashable


class Breaker(Generic[T]):
    """Keeps a deployment that is at fault from burying a backlog in the dead-letter topic.

    A wrong registry, a broken model and a store that refuses everything fail one request after the other.
    So only ``LIMIT`` requests may end for one code before anything succeeds again; the others are held back.
    A success says that the deployment works: as many are tried again then, and what fails again has itself
    to blame. Requests that do not fail are never stopped, whatever somebody else sends.
    """

    def __init__(self) -> None:
        self._ended: defaultdict[Code, set[tuple[Hashable, Hashable]]] = defaultdict(set)
        self._held: dict[Cause, deque[T]] = {}
        self._count: Counter[Code] = Counter()

    def holds(self, code: Code) -> int:
        """How many are held back for this code."""
        return self._count[code]

    def fail(self, cause: Cause, request: Hashable, item: T) -> bool:
        """Note that a request failed; returns whether it is held back.

        Args:
            request: what it is known by: one that is sent again counts once.
            item: what :meth:`succeed` and :meth:`release` give back.
        """
        ended = self._ended[cause.code]
        known = (cause.subject, request)
        if known in ended:
            return False
        same = sum(subject == cause.subject for subject, _ in ended)
        if len(ended) < LIMIT and same < LIMIT_OF_ONE:
            ended.add(known)
            return False
        self._held.setdefault(cause, deque()).append(item)
        self._count[cause.code] += 1
        return True

    def succeed(self, codes: Collection[Code]) -> list[T]:
        """Note that a request succeeded, which none does where one of these codes is our fault.

        Returns:
            what is to be tried again, and ends if it fails again: at most ``LIMIT`` of a code.
        """
        again = []
        for code in codes:
            self._ended.pop(code, None)
            room = LIMIT
            for cause in self._causes(code):
                if not room:
                    break
                taken = self._take(cause, min(room, LIMIT_OF_ONE))
                room -= len(taken)
                again += taken
        return again

    def release(self, code: Code) -> list[T]:
        """Everything that is held back for this code, held no more."""
        return [item for cause in self._causes(code) for item in self._take(cause, self._count[code])]

    def discard(self, gone: Callable[[T], bool]) -> None:
        """Forget what is held back and not ours any more."""
        for cause in list(self._held):
            kept = [item for item in self._take(cause, len(self._held[cause])) if not gone(item)]
            if kept:
                self._held[cause] = deque(kept)
                self._count[cause.code] += len(kept)

    def _causes(self, code: Code) -> list[Cause]:
        return [cause for cause in self._held if cause.code is code] if self._count[code] else []

    def _take(self, cause: Cause, most: int) -> list[T]:
        """Take the oldest of a cause; what is left of it comes after the other causes next time."""
        held = self._held.pop(cause)
        taken = [held.popleft() for _ in range(min(most, len(held)))]
        if held:
            self._held[cause] = held
        self._count[cause.code] -= len(taken)
        return taken
