"""JSON Lines input: one object per line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from zimage_producers.produce.columns import misnaming, no_such_column, similar_name
from zimage_producers.produce.rows import InputError, Row
from zimage_stream.errors import short_repr
from zimage_stream.events import strict_json


def read_json_lines(lines: Iterable[str], name_by: str | None = None) -> Iterator[Row]:
    """Read rows from lines.

    Args:
        name_by: a key that the first row must have.

    Raises:
        InputError: the first line shows that this is not JSON Lines, or lacks that key.
    """
    number = 0
    for line, content in enumerate(lines, 1):
        if not content.strip():
            continue
        number += 1
        if number == 1 and (content.strip() == "{" or not content.lstrip().startswith("{")):
            raise InputError(f"line {line}: {_describe_non_object(content.strip())}")
        values, problem = _parse_object(content)
        if values is not None and problem is None:
            problem = misnaming(values)
        if values is not None and problem is None and name_by is not None and name_by not in values:
            if number == 1:
                raise InputError(no_such_column(name_by, values, f"line {line}"))
            # Later rows may lack the key, but must not spell it differently.
            if similar_name(name_by, values):
                problem = no_such_column(name_by, values, "it")
        if problem or values is None:
            yield Row(line, number, {}, problem)
        else:
            yield Row(line, number, {name: value for name, value in values.items() if value is not None})


def _describe_non_object(text: str) -> str:
    if text.startswith("["):
        return (
            "it begins an array, but JSON Lines have one object per line: convert it, for example with "
            "jq -c '.[]' FILE.json > FILE.jsonl"
        )
    if text == "{":
        return (
            "it begins an object of several lines, but JSON Lines have one object per line: convert it, for "
            "example with jq -c . FILE.json > FILE.jsonl"
        )
    return f"{short_repr(text)} is not a JSON object; for a CSV file, use --input-format csv"


def _parse_object(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """Return the object in a line, or what is wrong with it."""
    try:
        values = strict_json.loads(text)
    except strict_json.InvalidJsonError as error:
        return None, str(error)
    if not isinstance(values, dict):
        return None, f"it is not a JSON object: {short_repr(values)}"
    return values, None
