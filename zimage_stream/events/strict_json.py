"""A strict JSON parser: it rejects ambiguous texts, and keeps all digits of numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, NoReturn

from zimage_stream.errors import short_repr

_MAX_DIGITS = 100


class InvalidJsonError(ValueError):
    """The text is not JSON, or is ambiguous. The message states where and why."""


def loads(text: str) -> Any:
    """Parse a text; numbers with a fraction or an exponent become :class:`~decimal.Decimal`.

    Raises:
        InvalidJsonError: the text is not JSON, repeats a key, or has absurdly long numbers or deep nesting.
    """
    try:
        return _DECODER.decode(text.strip())
    except json.JSONDecodeError as error:
        raise InvalidJsonError(f"it is not JSON: {error.msg} in column {error.colno:,}") from error
    except RecursionError:
        raise InvalidJsonError("it is nested too deeply") from None


def _reject_constant(name: str) -> NoReturn:
    raise InvalidJsonError(f"{name} is not a JSON number: write null, or omit the key")


def _parse_int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise InvalidJsonError(
            f"the number {text[:8]}… has {len(text.lstrip('-')):,} digits; at most {_MAX_DIGITS} are accepted"
        )
    return int(text)


def _parse_decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except ArithmeticError:
        # The exponent is beyond the range of Decimal.
        number = None
    if number is None or len(text) > _MAX_DIGITS or abs(number.adjusted()) > _MAX_DIGITS:
        raise InvalidJsonError(f"the number {short_repr(text)} is out of range")
    return number


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJsonError(f"the key {short_repr(twice)} occurs twice: keep one")
    return values


_DECODER = json.JSONDecoder(
    parse_constant=_reject_constant,
    parse_int=_parse_int,
    parse_float=_parse_decimal,
    object_pairs_hook=_reject_duplicate_keys,
)
