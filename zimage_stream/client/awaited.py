"""Matching of results to the requests that were sent. Pure bookkeeping, without locks or clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from zimage_stream.events.image_result import ImageResult, Source

_EARLY = 64
"""Maximum number of results kept for each request whose location is unknown, including duplicates."""


class Sent(Protocol):
    """A request that was sent. Requests are compared by identity."""

    @property
    def request_id(self) -> str:
        """The id that the result will have."""
        ...


T = TypeVar("T", bound=Sent)


@dataclass(slots=True)
class _Unlocated:
    """The requests with one id whose location is still unknown, and the results that arrived for that id."""

    count: int = 0
    early: dict[Source, ImageResult] = field(default_factory=dict)


class Awaited(Generic[T]):
    """The requests that were sent and have no result yet; ``len()`` is their number. Not thread-safe.

    A result names the record that it answers, and may be read before the brokers have acknowledged that
    record. Until they do, any result with the request's id may be the right one, because older records can
    have the same id: the latest such results are kept.
    """

    def __init__(self) -> None:
        self._sent: dict[T, Source | None] = {}
        self._located: dict[Source, T] = {}
        self._unlocated: dict[str, _Unlocated] = {}

    def __len__(self) -> int:
        return len(self._sent)

    def sending(self, sent: T) -> None:
        """Add a request, before it is sent."""
        self._sent[sent] = None
        self._unlocated.setdefault(sent.request_id, _Unlocated()).count += 1

    def accepted(self, sent: T, source: Source) -> ImageResult | None:
        """Note the location of a request's record; return its result if that has already arrived."""
        if sent not in self._sent:
            return None
        result = self._unlocated[sent.request_id].early.pop(source, None)
        self._set_located(sent)
        if result is None:
            self._sent[sent] = source
            self._located[source] = sent
        else:
            del self._sent[sent]
        return result

    def find(self, request_id: str, source: Source) -> T | None:
        """Return the pending request whose record is there, if it has this id."""
        sent = self._located.get(source)
        return sent if sent is not None and sent.request_id == request_id else None

    def drop(self, sent: T) -> None:
        """Remove a request, if it is present."""
        if sent not in self._sent:
            return
        source = self._sent.pop(sent)
        if source is None:
            self._set_located(sent)
        else:
            del self._located[source]

    def arrived(self, result: ImageResult) -> T | None:
        """Remove and return the request that a result answers.

        ``None`` means that no pending request is known to be the one: the result is a duplicate or another
        client's, or the location of its request is still unknown.
        """
        sent = self._located.get(result.source)
        if sent is not None and sent.request_id == result.request_id:
            self.drop(sent)
            return sent
        unlocated = self._unlocated.get(result.request_id)
        if unlocated is not None:
            unlocated.early[result.source] = result
            if len(unlocated.early) > _EARLY * unlocated.count:
                del unlocated.early[next(iter(unlocated.early))]
        return None

    def _set_located(self, sent: T) -> None:
        """Count one unlocated request less; after the last one, drop the results kept for the id."""
        unlocated = self._unlocated[sent.request_id]
        unlocated.count -= 1
        if not unlocated.count:
            del self._unlocated[sent.request_id]
