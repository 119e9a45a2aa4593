"""JSON that can be read in one way only, with all the digits of its numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

from zimage_stream.errors import shorten

_MAX_DIGITS = 100


class UnfitError(ValueError):
    """It is no JSON, or can be read in more ways than one. The message says where and why."""


def loads(text: str) -> Any:
    """The value of a text; numbers with a fraction or an exponent are :class:`~decimal.Decimal`.

    Raises:
        UnfitError: it is no JSON, names a key twice, or has numbers or a depth that nobody means.
    """
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise UnfitError(f"it is no JSON: {error.msg} in column {error.colno:,}") from error
    except RecursionError:
        raise UnfitError("it is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise UnfitError(f"{name} is no number of JSON: write null, or leave the key out")


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise UnfitError(
            f"the number {text[:8]}… has {len(text.lstrip('-')):,} digits; at most {_MAX_DIGITS} are taken"
        )
    return int(text)


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except ArithmeticError:
        # An exponent beyond what a Decimal holds.
        number = None
    if number is None or len(text) > _MAX_DIGITS or abs(number.adjusted()) > _MAX_DIGITS:
        raise UnfitError(f"the number {shorten(text)} is out of range")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnfitError(f"the key {shorten(twice)} is there twice: keep one")
    return values


_DECODER = json.JSONDecoder(
    parse_constant=_no_constant, parse_int=_whole, parse_float=_decimal, object_pairs_hook=_once
)
