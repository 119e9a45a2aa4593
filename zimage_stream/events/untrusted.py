"""Schemas of other people's, which a registry hands out by id: what they may cost whoever decodes with them.

A decoder does what the schema says. An array of nulls takes no bytes for an item, so that 12 bytes of a
record ask for 10^12 of them; a record that holds itself takes the stack; records of records that hold
nothing double with each level. None of that gets past :func:`admit`, and for the rest :class:`Cost` says how
many steps a record of so many bytes can take.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastavro.schema import parse_schema

from zimage_stream.errors import WireError
from zimage_stream.escaping import NAME_CHARACTERS, shortened

MAX_SCHEMA_CHARACTERS = 256 << 10
MAX_DEPTH = 64
"""Levels of a schema's text, and of its values."""
MAX_STEPS = 8 << 20
"""Of decoding one record: a few seconds. Ours take 40, and one for each byte of attributes."""

_BYTES = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}
"""The fewest that a value takes."""


class RefusedSchemaError(WireError):
    """Nothing is decoded with this schema: it could take any time, memory or stack."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Steps of decoding with a schema: for the value itself, and for each byte at the most."""

    once: int
    per_byte: int

    def steps(self, size: int) -> int:
        """The most that a record of so many bytes takes."""
        return self.once + self.per_byte * size


@dataclass(frozen=True, slots=True)
class Writer:
    """The schema that a record was written with, as fastavro wants it. ``cost``: absent for our own."""

    parsed: Any
    cost: Cost | None = None


class Body(io.BytesIO):
    """Bytes that say when they end. fastavro skips what is not there, as often as it is told."""

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes. Raises EOFError."""
        wanted = -1 if size is None else size
        data = super().read(wanted)
        if wanted < 0 or len(data) < wanted:
            raise EOFError(f"{wanted} bytes are to be read, {len(data)} are left")
        return data


def admit(text: str, references: Iterable[str] = ()) -> Writer:
    """Parse a schema, and see what it can cost.

    Args:
        references: texts of the schemas that it refers to by name, each after those that it needs itself.

    Raises:
        RefusedSchemaError: it is not to be decoded with.
        Exception: it is no Avro schema; the parser raises as it likes.
    """
    named: dict[str, Any] = {}
    for each in references:
        parse_schema(_load(each), named)
    parsed = parse_schema(_load(text), named)
    return Writer(parsed, _Measure(named).cost(parsed))


def _load(text: str) -> Any:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise RefusedSchemaError(
            f"its text has {len(text):,} characters; at most {MAX_SCHEMA_CHARACTERS:,} are read"
        )
    return _plain(json.loads(text), 0)


def _plain(node: Any, depth: int) -> Any:
    """The schema without decimals, whose numbers of a million digits take minutes to make."""
    if depth > MAX_DEPTH:
        raise RefusedSchemaError(f"it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(node, list):
        return [_plain(each, depth + 1) for each in node]
    if isinstance(node, dict):
        if node.get("logicalType") == "decimal":
            node = {key: each for key, each in node.items() if key != "logicalType"}
        return {key: _plain(each, depth + 1) for key, each in node.items()}
    return node


@dataclass(frozen=True, slots=True)
class _Size:
    """Of a value: the fewest bytes, the steps without its items, the most steps for each byte of items."""

    least: int
    once: int
    per_byte: int = 0


class _Measure:
    """Walks a parsed schema; each named type once, however often it is named."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, _Size] = {}
        self._open: set[str] = set()
        self._depth = 0

    def cost(self, schema: Any) -> Cost:
        size = self._of(schema)
        cost = Cost(size.once, size.per_byte)
        if cost.once > MAX_STEPS:
            raise RefusedSchemaError(f"a value of it takes {cost.once:,} steps to decode, whatever it holds")
        return cost

    def _of(self, schema: Any) -> _Size:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedSchemaError(f"its values are nested more than {MAX_DEPTH} levels deep")
        try:
            return self._measured(schema)
        finally:
            self._depth -= 1

    def _measured(self, schema: Any) -> _Size:
        if isinstance(schema, list):
            return self._union(schema)
        if isinstance(schema, str):
            return self._by_name(schema)
        kind = schema["type"]
        match kind:
            case "record" | "error" | "enum" | "fixed":
                return self._by_name(schema["name"])
            case "array":
                return self._items(self._of(schema["items"]), 0, "array")
            case "map":
                return self._items(self._of(schema["values"]), 1, "map")
            case _:
                return self._of(kind)

    def _by_name(self, name: str) -> _Size:
        if name in _BYTES:
            return _Size(_BYTES[name], 1)
        if name in self._open:
            raise RefusedSchemaError(
                f"{shortened(name, NAME_CHARACTERS)} holds itself; recursive schemas are not read"
            )
        if name not in self._known:
            self._open.add(name)
            self._known[name] = self._declared(self._named[name])
            self._open.remove(name)
        return self._known[name]

    def _declared(self, schema: Mapping[str, Any]) -> _Size:
        match schema["type"]:
            case "enum":
                return _Size(1, 1)
            case "fixed":
                return _Size(max(0, int(schema["size"])), 1)
            case _:
                fields = [self._of(field["type"]) for field in schema["fields"]]
                return _Size(
                    sum(field.least for field in fields),
                    1 + sum(field.once for field in fields),
                    max((field.per_byte for field in fields), default=0),
                )

    def _union(self, branches: list[Any]) -> _Size:
        sizes = [self._of(branch) for branch in branches]
        return _Size(
            1 + min((size.least for size in sizes), default=0),
            # Each branch is looked at to find the one that the reader means.
            1 + len(sizes) + max((size.once for size in sizes), default=0),
            max((size.per_byte for size in sizes), default=0),
        )

    def _items(self, item: _Size, key_bytes: int, kind: str) -> _Size:
        least = item.least + key_bytes
        if least == 0:
            raise RefusedSchemaError(f"items of its {kind} can take no bytes, so that nothing bounds them")
        once = item.once + key_bytes
        return _Size(1, 2, max(item.per_byte, -(-once // least)))
