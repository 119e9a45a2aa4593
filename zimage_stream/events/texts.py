"""Conversion of request fields from text, such as a table cell or a command-line option."""

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

_INT_FIELDS = frozenset(("width", "height", "seed", "steps", "quality", "priority", "previews"))
_TIME_FIELDS = frozenset(("expires_at", "created_at"))
_NAME_FIELDS = frozenset(("request_id", "tenant", "batch_id"))

_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")
_SCIENTIFIC = re.compile(r"[+-]?\d+([.,]\d*)?[eE][+-]?\d+")
_EXCEL_DAY = re.compile(r"\d{5}([.,]\d+)?")
_MAX_EXACT = 2**53
"""Largest bound up to which floating-point numbers represent every whole number exactly."""


def is_text(name: str) -> bool:
    """Whether a field accepts any text."""
    return name not in _INT_FIELDS | _TIME_FIELDS | {"guidance_scale", "attributes"}


def field_from_text(name: str, value: Any) -> Any:
    """Convert a value to the type of a request's field, without checking it against the rules.

    Args:
        name: one of ``FIELDS``.
        value: text in the field's notation, or a value from JSON or a spreadsheet.

    Raises:
        RequestError: the value cannot be converted to the field's type.
    """
    if not isinstance(value, str):
        return _field_from_value(name, value)
    if name in _INT_FIELDS:
        return _int_from_text(name, value.strip())
    if name == "guidance_scale":
        try:
            return float(value)
        except ValueError:
            raise RequestError(name, "a number", value) from None
    if name in _TIME_FIELDS:
        return time_from_text(name, value)
    if name == "attributes":
        try:
            return strict_json.loads(value)
        except strict_json.InvalidJsonError as error:
            raise RequestError(name, f"a JSON object of texts ({error})", value) from None
    return value


def _field_from_value(name: str, value: Any) -> Any:
    if name in _TIME_FIELDS:
        raise RequestError(name, "a time such as 2030-01-31T12:00:00+00:00", value)
    if name in _NAME_FIELDS and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, float | Decimal):
        return value
    number = Decimal(value)
    if name in _INT_FIELDS and number.is_finite():
        if abs(number) > _MAX_EXACT or int(number.as_tuple().exponent) > 0:
            raise RequestError(name, f"a whole number with all its digits; {_DIGITS_LOST}", str(value))
        if number == int(number):
            return int(number)
    return float(value)


_DIGITS_LOST = "this one lost some when it was saved: store it as text"


def _int_from_text(name: str, text: str) -> int:
    if _SCIENTIFIC.fullmatch(text):
        raise RequestError(name, f"a whole number with all its digits; {_DIGITS_LOST}", text)
    found = _WHOLE_NUMBER.fullmatch(text)
    # Python refuses to convert very long numbers, because that would take too long.
    if found is None or len(text) > 1_000:
        raise RequestError(name, "a whole number", text)
    number = int(found[1])
    if found[2] and abs(number) > _MAX_EXACT:
        raise RequestError(name, f"a whole number with all its digits; {_DIGITS_LOST}", text)
    return number


def time_from_text(name: str, text: str) -> datetime:
    """Parse an ISO 8601 time; one without a time zone is UTC.

    Raises:
        RequestError: the text is not such a time.
    """
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        day = _EXCEL_DAY.fullmatch(text.strip())
        hint = "; this is an Excel date number: format the cell as text" if day else ""
        raise RequestError(name, f"a time such as 2030-01-31T12:00:00+00:00{hint}", text) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
