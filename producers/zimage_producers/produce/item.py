"""A request of a run."""

from __future__ import annotations

from dataclasses import dataclass

from zimage_stream.events.prompt_request import PromptRequest


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A request of the run: the line it comes from, and what its picture is to be called."""

    line: int
    request: PromptRequest
    name: str | None = None

    @property
    def request_id(self) -> str:
        """The request's."""
        return self.request.request_id
