"""Which result answers what was sent. Pure bookkeeping, without locks or clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from zimage_stream.events.image_result import ImageResult, Source

_EARLY = 64
"""Results kept for each request that has no place yet; copies of answered ones are among them."""


class Sent(Protocol):
    """A request that was sent; told from another one by identity."""

    @property
    def request_id(self) -> str:
        """The id that its result will carry."""
        ...


T = TypeVar("T", bound=Sent)


@dataclass(slots=True)
class _Unplaced:
    """Requests under one id that have no place yet, and the results under it that came meanwhile."""

    count: int = 0
    early: dict[Source, ImageResult] = field(default_factory=dict)


class Awaited(Generic[T]):
    """What was sent and has no result yet. Its size is the number of requests in it. Not thread-safe.

    A result names the record that it answers, and may be read before the brokers have said where that record
    is. Until they do, any result under the request's id may be the one, since older records can have the
    same id: the latest of them are kept.
    """

    def __init__(self) -> None:
        self._sent: dict[T, Source | None] = {}
        self._placed: dict[Source, T] = {}
        self._unplaced: dict[str, _Unplaced] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def sending(self, sent: T) -> None:
        """It is on its way to the brokers. Noted before it is sent."""
        self._sent[sent] = None
        self._unplaced.setdefault(sent.request_id, _Unplaced()).count += 1

    def accepted(self, sent: T, source: Source) -> ImageResult | None:
        """The brokers have it, there. Its result, where that has come before."""
        if sent not in self._sent:
            return None
        result = self._unplaced[sent.request_id].early.pop(source, None)
        self._has_place(sent)
        if result is None:
            self._sent[sent] = source
            self._placed[source] = sent
        else:
            del self._sent[sent]
        return result

    def drop(self, sent: T) -> None:
        """Its result is not awaited any more, if it was."""
        if sent not in self._sent:
            return
        source = self._sent.pop(sent)
        if source is None:
            self._has_place(sent)
        else:
            del self._placed[source]

    def arrived(self, result: ImageResult) -> T | None:
        """What the result answers, which is awaited no more; ``None`` where it answers nothing that is known
        to be awaited, as for others' results and for a second copy."""
        sent = self._placed.get(result.source)
        if sent is not None and sent.request_id == result.request_id:
            self.drop(sent)
            return sent
        unplaced = self._unplaced.get(result.request_id)
        if unplaced is not None:
            unplaced.early[result.source] = result
            if len(unplaced.early) > _EARLY * unplaced.count:
                del unplaced.early[next(iter(unplaced.early))]
        return None

    def _has_place(self, sent: T) -> None:
        """One less has none; the results kept for the last one are nobody's."""
        unplaced = self._unplaced[sent.request_id]
        unplaced.count -= 1
        if not unplaced.count:
            del self._unplaced[sent.request_id]
