"""Checks of column and key names, which detect names that only resemble a request's fields."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache

from zimage_producers.produce.rows import InputError
from zimage_stream.errors import short_repr
from zimage_stream.events.texts import FIELDS


@lru_cache(4096)
def field_resembled_by(name: str) -> str | None:
    """Return the field that a name differs from only in case, spaces, hyphens, width, invisible characters
    or a plural."""
    return None if name in FIELDS else similar_name(name, FIELDS)


def similar_name(name: str, others: Collection[str]) -> str | None:
    """Return the first of the other names that is the same name in a different spelling."""
    plain = _normalized(name)
    return next((other for other in sorted(others) if other != name and _normalized(other) == plain), None)


def _normalized(name: str) -> str:
    normal = unicodedata.normalize("NFKC", name)
    visible = "".join(each for each in normal if unicodedata.category(each) not in ("Cf", "Cc"))
    return re.sub(r"[\s_-]+", "", visible).casefold().removesuffix("s")


def misnaming(names: Collection[str]) -> str | None:
    """Describe the problem with the first name that resembles a field's; ``None`` if there is none."""
    for name in names:
        if field := field_resembled_by(name):
            return f"{short_repr(name)} is not a field: write {field}, or rename it if it is an attribute"
    return None


def check_columns(names: Sequence[str], line: int, name_by: str | None) -> None:
    """Reject a header that is probably a mistake.

    Args:
        names: names in the first line; empty for columns without a name.
        line: number of that line.
        name_by: a column that must be among them.

    Raises:
        InputError: the header is invalid; the message states the remedy.
    """
    if problem := misnaming(names):
        raise InputError(f"line {line}: the column {problem}")
    if "prompt" not in names:
        hint = ". For JSON Lines, use --input-format jsonl" if "".join(names[:1])[:1] == "{" else ""
        raise InputError(
            f"line {line} must name the columns, including prompt; it is {short_repr([*names])}{hint}"
        )
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise InputError(f"line {line}: the column {short_repr(name)} occurs twice")
        seen.add(name)
    if name_by is not None and name_by not in seen - {""}:
        raise InputError(no_such_column(name_by, [name for name in names if name], f"line {line}"))


def no_such_column(name_by: str, names: Collection[str], where: str) -> str:
    """Build the message that the column of ``--name-by`` is not among these names."""
    close = similar_name(name_by, names)
    hint = f"did you mean {short_repr(close)}?" if close else f"the columns are {short_repr([*names], 200)}"
    return f"--name-by: {where} has no column {short_repr(name_by)}; {hint}"
