"""Cancellations, each of which asks that one request be ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from zimage_stream.errors import RequestError
from zimage_stream.events.image_result import Source
from zimage_stream.events.rules import check_text

MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """Asks that the request in one record be ended. ``schemas/zimage.Cancellation`` documents every field.

    It names a record, not an id, so it never ends a later request with the same id.
    """

    request_id: str
    source: Source
    requested_at: datetime
    tenant: str = "default"
    reason: str | None = None


def check_reason(reason: object) -> None:
    """Raise RequestError if a value is neither ``None`` nor valid as a ``reason``. Pure."""
    if reason is None:
        return
    if not isinstance(reason, str) or len(reason) > MAX_REASON_CHARACTERS:
        raise RequestError("reason", f"text of at most {MAX_REASON_CHARACTERS} characters", reason)
    check_text("reason", reason)
