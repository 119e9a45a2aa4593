"""Selects dead letters, counts them, and builds the requests that a replay sends. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from zimage_consumers.dead_letters.letter import DeadLetter, LetterPosition
from zimage_stream.errors import ZImageError
from zimage_stream.events.prompt_request import PromptRequest


class NotReplayableError(ZImageError):
    """A dead letter cannot be replayed as requested."""


@dataclass(frozen=True, slots=True)
class LetterFilter:
    """Criteria for dead letters; an empty set allows any value."""

    codes: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    places: frozenset[LetterPosition] = frozenset()

    def matches(self, letter: DeadLetter) -> bool:
        """Whether the letter meets all criteria."""
        tenant = letter.request.tenant if letter.request else None
        pairs: tuple[tuple[Collection[Any], Any], ...] = (
            (self.codes, letter.code),
            (self.ids, letter.request_id),
            (self.tenants, tenant),
            (self.places, letter.place),
        )
        return all(not allowed or value in allowed for allowed, value in pairs)


@dataclass(slots=True)
class LetterGroup:
    """The dead letters of one code."""

    count: int
    replayed: int
    oldest: datetime
    newest: datetime
    example: DeadLetter

    def add(self, letter: DeadLetter, replayed: bool) -> None:
        """Add a letter to the group."""
        self.count += 1
        self.replayed += replayed
        self.oldest = min(self.oldest, letter.at)
        if letter.at >= self.newest:
            self.newest, self.example = letter.at, letter

    def as_dict(self) -> dict[str, Any]:
        """The group as a JSON object."""
        return {
            "count": self.count,
            "replayed": self.replayed,
            "oldest": self.oldest.isoformat(timespec="milliseconds"),
            "newest": self.newest.isoformat(timespec="milliseconds"),
            "example": {"place": str(self.example.place), "message": self.example.message},
        }

    @staticmethod
    def of(letter: DeadLetter) -> LetterGroup:
        """An empty group that starts with this letter."""
        return LetterGroup(0, 0, letter.at, letter.at, letter)


def request_to_send(
    letter: DeadLetter, changes: Mapping[str, Any], *, keep_expiry: bool
) -> PromptRequest | None:
    """The request to send for a letter, or ``None`` where its record is sent unchanged.

    Args:
        changes: fields with their new values.
        keep_expiry: keep ``expires_at``. Otherwise it is cleared, or most replays would expire at once.

    Raises:
        NotReplayableError: fields are to be changed, but the record does not decode.
    """
    request = letter.request
    if request is None:
        if changes:
            raise NotReplayableError(f"{letter.place} cannot be changed field by field: {letter.unreadable}")
        return None
    if not keep_expiry:
        changes = {"expires_at": None, **changes}
    new = replace(request, **changes)
    return None if new == request else new
