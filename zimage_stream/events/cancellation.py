"""Cancellations, each of which asks that one request be ended."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from zimage_stream.errors import RequestError
from zimage_stream.events.image_result import Source

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


def check_reason(reason: str | None) -> None:
    """Raise RequestError if a reason is too long. Pure."""
    if reason is not None and len(reason) > MAX_REASON_CHARACTERS:
        raise RequestError(
            "reason", f"at most {MAX_REASON_CHARACTERS} characters", f"{len(reason)} characters"
        )
