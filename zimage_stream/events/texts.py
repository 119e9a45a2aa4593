"""Fields of a request as people write them: in a cell of a table, or on the command line."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from zimage_stream.errors import RequestError
from zimage_stream.events.prompt_request import PromptRequest

FIELDS = frozenset(field.name for field in fields(PromptRequest))

_WHOLE = frozenset(("width", "height", "seed", "steps", "quality", "priority"))
_TIMES = frozenset(("expires_at", "created_at"))


def field_from_text(name: str, value: Any) -> Any:
    """The value of a request's field.

    Args:
        name: one of ``FIELDS``.
        value: a text in the field's own notation; what is no text (from JSON, say) stays as it is.

    Raises:
        RequestError: it is not of the field's kind; the rules are not checked here.
    """
    if not isinstance(value, str):
        if name in _TIMES:
            raise RequestError(name, "a time such as 2030-01-31T12:00:00+00:00", value)
        return value
    if name in _WHOLE:
        try:
            return int(value)
        except ValueError:
            raise RequestError(name, "a whole number", value) from None
    if name == "guidance_scale":
        try:
            return float(value)
        except ValueError:
            raise RequestError(name, "a number", value) from None
    if name in _TIMES:
        return time_from_text(name, value)
    if name == "attributes":
        try:
            return json.loads(value)
        except ValueError:
            raise RequestError(name, "a JSON object of texts", value) from None
    return value


def time_from_text(name: str, text: str) -> datetime:
    """An ISO 8601 time; one without a zone is taken as UTC.

    Raises:
        RequestError: it is none.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise RequestError(name, "a time such as 2030-01-31T12:00:00+00:00", text) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
