"""Fields of a request as people write them: in a cell of a table, or on the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from zimage_stream.errors import RequestError
from zimage_stream.events import strict_json
from zimage_stream.events.prompt_request import PromptRequest

FIELDS = frozenset(field.name for field in fields(PromptRequest))

_WHOLE = frozenset(("width", "height", "seed", "steps", "quality", "priority"))
_TIMES = frozenset(("expires_at", "created_at"))
_NAMES = frozenset(("request_id", "tenant", "batch_id"))

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")
_SCIENTIFIC = re.compile(r"[+-]?\d+([.,]\d*)?[eE][+-]?\d+")
_EXCEL_DAY = re.compile(r"\d{5}([.,]\d+)?")
_EXACT = 2**53
"""Beyond it a floating-point number is not every whole number."""


def is_text(name: str) -> bool:
    """Whether a field takes any text."""
    return name not in _WHOLE | _TIMES | {"guidance_scale", "attributes"}


def field_from_text(name: str, value: Any) -> Any:
    """The value of a request's field.

    Args:
        name: one of ``FIELDS``.
        value: a text in the field's own notation, or what JSON or a spreadsheet has there.

    Raises:
        RequestError: it is not of the field's kind; the rules are not checked here.
    """
    if not isinstance(value, str):
        return _field_from_value(name, value)
    if name in _WHOLE:
        return _whole_from_text(name, value.strip())
    if name == "guidance_scale":
        try:
            return float(value)
        except ValueError:
            raise RequestError(name, "a number", value) from None
    if name in _TIMES:
        return time_from_text(name, value)
    if name == "attributes":
        try:
            return strict_json.loads(value)
        except strict_json.UnfitError as error:
            raise RequestError(name, f"a JSON object of texts ({error})", value) from None
    return value


def _field_from_value(name: str, value: Any) -> Any:
    if name in _TIMES:
        raise RequestError(name, "a time such as 2030-01-31T12:00:00+00:00", value)
    if name in _NAMES and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, float | Decimal):
        return value
    number = Decimal(value)
    if name in _WHOLE and number.is_finite():
        if abs(number) > _EXACT or int(number.as_tuple().exponent) > 0:
            raise RequestError(name, f"a whole number with all its digits; {_LOST}", str(value))
        if number == int(number):
            return int(number)
    return float(value)


_LOST = "this one has lost some where it was saved: keep it as text there"


def _whole_from_text(name: str, text: str) -> int:
    if _SCIENTIFIC.fullmatch(text):
        raise RequestError(name, f"a whole number with all its digits; {_LOST}", text)
    found = _WHOLE_NUMBER.fullmatch(text)
    # Else Python refuses to convert it at all, for the time that it would take.
    if found is None or len(text) > 1_000:
        raise RequestError(name, "a whole number", text)
    number = int(found[1])
    if found[2] and abs(number) > _EXACT:
        raise RequestError(name, f"a whole number with all its digits; {_LOST}", text)
    return number


def time_from_text(name: str, text: str) -> datetime:
    """An ISO 8601 time; one without a zone is taken as UTC.

    Raises:
        RequestError: it is none.
    """
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        day = _EXCEL_DAY.fullmatch(text.strip())
        hint = "; this is a day as Excel counts them: format the cell as text" if day else ""
        raise RequestError(name, f"a time such as 2030-01-31T12:00:00+00:00{hint}", text) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
