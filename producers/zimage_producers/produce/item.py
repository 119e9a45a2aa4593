"""A request as part of a run."""

from __future__ import annotations

from dataclasses import dataclass

from zimage_stream.events.prompt_request import PromptRequest


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A request of the run, with its line in the input and the file name for its image."""

    line: int
    request: PromptRequest
    name: str | None = None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id
