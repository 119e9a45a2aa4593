"""Names of columns and keys: which are fields of a request, and which only look like one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from functools import lru_cache

from zimage_producers.produce.rows import InputError
from zimage_stream.errors import shorten
from zimage_stream.events.texts import FIELDS


@lru_cache(4096)
def meant(name: str) -> str | None:
    """The field that a name misses only by case, spaces, hyphens, width, invisible signs or a plural."""
    return None if name in FIELDS else alike(name, FIELDS)


def alike(name: str, others: Collection[str]) -> str | None:
    """The first of the others that is the same name, written differently."""
    plain = _plain(name)
    return next((other for other in sorted(others) if other != name and _plain(other) == plain), None)


def _plain(name: str) -> str:
    normal = unicodedata.normalize("NFKC", name)
    seen = "".join(sign for sign in normal if unicodedata.category(sign) not in ("Cf", "Cc"))
    return re.sub(r"[\s_-]+", "", seen).casefold().removesuffix("s")


def misnamed(names: Collection[str]) -> str | None:
    """What is wrong with names that nearly are those of fields."""
    for name in names:
        if field := meant(name):
            return f"{shorten(name)} is no field: write {field}, or rename it if an attribute is meant"
    return None


def check_columns(names: Sequence[str], line: int, name_by: str | None) -> None:
    """Refuse a header that cannot be meant.

    Args:
        names: as in the first line; empty for columns without a name.

    Raises:
        InputError: says what is wrong with it, and what to do.
    """
    if problem := misnamed(names):
        raise InputError(f"line {line}: the column {problem}")
    if "prompt" not in names:
        hint = ". Rows of JSON are read with --input-format jsonl" if "".join(names[:1])[:1] == "{" else ""
        raise InputError(
            f"line {line} must name the columns, prompt among them; it is {shorten([*names])}{hint}"
        )
    seen: set[str] = set()
    for name in names:
        if name and name in seen:
            raise InputError(f"line {line}: the column {shorten(name)} is named twice")
        seen.add(name)
    if name_by is not None and name_by not in seen - {""}:
        raise InputError(no_such(name_by, [name for name in names if name], f"line {line}"))


def no_such(name_by: str, names: Collection[str], where: str) -> str:
    """That the column of ``--name-by`` is not among these names."""
    close = alike(name_by, names)
    hint = f"did you mean {shorten(close)}?" if close else f"there are {shorten([*names], 200)}"
    return f"--name-by: {where} has no column {shorten(name_by)}; {hint}"
