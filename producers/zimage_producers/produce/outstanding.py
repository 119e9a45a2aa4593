"""Which requests of a run are still without an answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from zimage_stream.events.image_result import ImageResult, Source
from zimage_stream.events.prompt_request import PromptRequest


@dataclass(slots=True, eq=False)
class Item:
    """A request of the run: the line it comes from, and what its picture is to be called."""

    line: int
    request: PromptRequest
    name: str | None = None


class Outstanding:
    """Items by where they are. Its size is the number of items in it."""

    def __init__(self) -> None:
        self._unplaced: dict[Item, None] = {}
        self._placed: dict[Source, Item] = {}
        self._early: dict[Source, ImageResult] = {}

    def __len__(self) -> int:
        return len(self._unplaced) + len(self._placed)

    def sending(self, item: Item) -> None:
        """It is on its way to the brokers."""
        self._unplaced[item] = None

    def refused(self, item: Item) -> None:
        """The brokers did not take it; it will have no result."""
        del self._unplaced[item]
        self._forget_early()

    def accepted(self, item: Item, source: Source, *, answer_follows: bool) -> ImageResult | None:
        """The brokers have it. Its result, where that came before the brokers' answer did.

        Args:
            answer_follows: it stays outstanding until :meth:`arrived` is told of its result.
        """
        del self._unplaced[item]
        result = self._early.pop(source, None)
        if result is None and answer_follows:
            self._placed[source] = item
        self._forget_early()
        return result

    def arrived(self, result: ImageResult) -> Item | None:
        """The item that a result answers; ``None`` for others' results and for a second copy."""
        item = self._placed.pop(result.source, None)
        if item is None and self._unplaced:
            self._early[result.source] = result
        return item

    def _forget_early(self) -> None:
        # What is known by now to be nobody's: all that was sent has its place.
        if not self._unplaced:
            self._early.clear()
