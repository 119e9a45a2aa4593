"""Rows of a file and their conversion to requests. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from zimage_stream.errors import RequestError, ZImageError
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.rules import NAME
from zimage_stream.events.texts import FIELDS, field_from_text

_MAX_PREFIX = 100


class InputError(ZImageError):
    """The file cannot be read, or not beyond a certain line."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        line: number of the line where it begins, from 1.
        number: number of the row, from 1.
        values: values by column; empty if the row could not be read.
        problem: why the row could not be read; ``None`` if it could.
    """

    line: int
    number: int
    values: Mapping[str, Any]
    problem: str | None = None


def request_of(row: Row, batch_id: str, request_id: str, defaults: Mapping[str, Any]) -> PromptRequest:
    """Convert a row to a request. Columns that are not fields of a request become attributes.

    Args:
        request_id: the id, if the row has none.
        defaults: values of fields that the row does not set.

    Raises:
        RequestError: a value has the wrong type. The rules are not checked here.
    """
    known = {name: field_from_text(name, value) for name, value in row.values.items() if name in FIELDS}
    unknown = {name: _as_text(name, value) for name, value in row.values.items() if name not in FIELDS}
    own = known.pop("attributes", {})
    if not isinstance(own, dict):
        raise RequestError("attributes", "a JSON object of texts", own)
    own = {name: _as_text(f"attributes: {name}", value) for name, value in own.items() if value is not None}
    request = {"batch_id": batch_id, "request_id": request_id, **defaults, **known}
    attributes = {**defaults.get("attributes", {}), **unknown, **own}
    request.setdefault("prompt", "")
    return PromptRequest(**{**request, "attributes": attributes})


def batch_name(path: Path | None, at: datetime) -> str:
    """Build a default name for a batch: the file's name, restricted to valid characters, and the time."""
    return f"{_in_alphabet(path.stem if path else 'stdin')}-{at.astimezone(UTC):%Y%m%d-%H%M%S}"


def id_prefix(batch_id: str) -> str:
    """Return the prefix of a batch's ids: its name, or a unique substitute if that is not valid in an id."""
    if NAME.fullmatch(batch_id) and len(batch_id) <= _MAX_PREFIX:
        return batch_id
    return f"{_in_alphabet(batch_id)}-{hashlib.sha256(batch_id.encode()).hexdigest()[:8]}"


def _in_alphabet(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._~-]+", "-", text).strip("-._~")[:60] or "batch"


def _as_text(name: str, value: Any) -> str:
    """Convert an attribute's value to text: numbers with all their digits, booleans as in JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    raise RequestError(name, "a text or a number; convert other values to text", value)
