"""Rows of a file and the requests they ask for. Pure."""

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
    """The file cannot be read, or not beyond some line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``line`` is where it begins in the file and ``number`` counts rows, both from 1.

    ``problem`` is set, and ``values`` empty, where it could not be read.
    """

    line: int
    number: int
    values: Mapping[str, Any]
    problem: str | None = None


def request_of(row: Row, batch_id: str, request_id: str, defaults: Mapping[str, Any]) -> PromptRequest:
    """The request that a row asks for. Columns that are no field of a request become attributes.

    Args:
        request_id: for a row without one.
        defaults: fields for rows that do not say.

    Raises:
        RequestError: a value is not of its field's kind; the rules are not checked here.
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
    """A name for a batch that was given none: the file's, made an id's alphabet, and the time."""
    return f"{_in_alphabet(path.stem if path else 'stdin')}-{at.astimezone(UTC):%Y%m%d-%H%M%S}"


def id_prefix(batch_id: str) -> str:
    """What the ids of a batch begin with: its name, or, where that is not in an id's alphabet, one
    that no other batch shares."""
    if NAME.fullmatch(batch_id) and len(batch_id) <= _MAX_PREFIX:
        return batch_id
    return f"{_in_alphabet(batch_id)}-{hashlib.sha256(batch_id.encode()).hexdigest()[:8]}"


def _in_alphabet(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._~-]+", "-", text).strip("-._~")[:60] or "batch"


def _as_text(name: str, value: Any) -> str:
    """An attribute's value as text: numbers with the digits they have, true and false as JSON has them."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return str(value)
    raise RequestError(name, "a text or a number; put other values into a text", value)
