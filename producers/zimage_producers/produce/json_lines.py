"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

from zimage_producers.produce.columns import alike, misnamed, no_such
from zimage_producers.produce.rows import InputError, Row
from zimage_stream.errors import shorten

_MAX_DIGITS = 100


def read_json_lines(lines: Iterable[str], name_by: str | None = None) -> Iterator[Row]:
    """The rows in these lines.

    Args:
        name_by: a key that the first row must have.

    Raises:
        InputError: the first line shows that these are no JSON lines, or lacks that key.
    """
    number = 0
    for line, content in enumerate(lines, 1):
        if not content.strip():
            continue
        number += 1
        if number == 1 and not content.lstrip().startswith("{"):
            raise InputError(f"line {line}: {_no_object(content.strip())}")
        values, problem = _object(content)
        if values is not None and problem is None:
            problem = misnamed(values)
        if values is not None and problem is None and name_by is not None and name_by not in values:
            if number == 1:
                raise InputError(no_such(name_by, values, f"line {line}"))
            # Later rows may lack it, but not have it under another spelling.
            if alike(name_by, values):
                problem = no_such(name_by, values, "it")
        if problem or values is None:
            yield Row(line, number, {}, problem)
        else:
            yield Row(line, number, {name: value for name, value in values.items() if value is not None})


def _no_object(text: str) -> str:
    if text.startswith("["):
        return (
            "it begins an array, and JSON Lines have one object a line: convert it, for example with "
            "jq -c '.[]' FILE.json > FILE.jsonl"
        )
    return f"{shorten(text)} is no JSON object; a CSV file is read with --input-format csv"


def _object(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object in a line, or what is wrong with it."""
    try:
        values = _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        return None, f"it is no JSON: {error.msg} in column {error.colno:,}"
    except _Unfit as error:
        return None, str(error)
    except RecursionError:
        return None, "it is nested too deeply"
    if not isinstance(values, dict):
        return None, f"it is no JSON object: {shorten(values)}"
    return values, None


class _Unfit(Exception):  # noqa: N818
    """JSON that can be read in more ways than one, or in none."""


def _no_constant(name: str) -> NoReturn:
    raise _Unfit(f"{name} is no number of JSON: write null, or leave the key out")


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _Unfit(
            f"the number {text[:8]}… has {len(text.lstrip('-')):,} digits; at most {_MAX_DIGITS} are taken"
        )
    return int(text)


def _decimal(text: str) -> Decimal:
    """The number with all its digits."""
    number = Decimal(text)
    if len(text) > _MAX_DIGITS or abs(number.adjusted()) > _MAX_DIGITS:
        raise _Unfit(f"the number {shorten(text)} is out of range")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Unfit(f"the key {shorten(twice)} is there twice: keep one")
    return values


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_int=_whole, parse_float=_decimal, object_pairs_hook=_once
)
