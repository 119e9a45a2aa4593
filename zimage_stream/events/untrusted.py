"""Untrusted schemas, which a registry serves by id, and limits on what decoding with them may cost.

A decoder does what the schema says. Items of an array of nulls occupy no bytes, so 12 bytes of a record can
demand 10^12 of them; a recursive record exhausts the stack; nested empty records double the work with each
level. :func:`admit` rejects all of these. For other schemas, :class:`Cost` bounds the number of steps for a
record of a given size.
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
"""Maximum nesting depth of a schema's text, and of its values."""
MAX_STEPS = 8 << 20
"""Maximum number of steps for decoding one record: a few seconds. Our own schemas take 40, plus one for each
byte of attributes."""

_BYTES = {"null": 0, "boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8, "bytes": 1, "string": 1}
"""Minimum encoded size of a value of each primitive type, in bytes."""


class RefusedSchemaError(WireError):
    """The schema is not used for decoding, because it could take unbounded time, memory or stack."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Bounds on the steps of decoding with a schema: fixed ones, and at most so many for each byte."""

    once: int
    per_byte: int

    def steps(self, size: int) -> int:
        """Return the maximum number of steps for a record of ``size`` bytes."""
        return self.once + self.per_byte * size


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """The schema that a record was written with, parsed by fastavro. ``cost`` is ``None`` for our own."""

    parsed: Any
    cost: Cost | None = None


class ExactReader(io.BytesIO):
    """A byte stream that raises at its end. fastavro by itself ignores a short read, however many follow."""

    def read(self, size: int | None = -1) -> bytes:
        """Read exactly ``size`` bytes. Raises EOFError if fewer are left."""
        wanted = -1 if size is None else size
        data = super().read(wanted)
        if wanted < 0 or len(data) < wanted:
            raise EOFError(f"{wanted} bytes are needed, {len(data)} are left")
        return data


def admit(text: str, references: Iterable[str] = ()) -> WriterSchema:
    """Parse a schema and bound the cost of decoding with it.

    Args:
        text: the schema as JSON.
        references: texts of the schemas that it refers to by name, each after its own references.

    Raises:
        RefusedSchemaError: decoding with it could be too expensive.
        Exception: it is not an Avro schema; the parser raises various exceptions.
    """
    named: dict[str, Any] = {}
    for each in references:
        parse_schema(_load(each), named)
    parsed = parse_schema(_load(text), named)
    return WriterSchema(parsed, _CostCalculator(named).cost(parsed))


def _load(text: str) -> Any:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise RefusedSchemaError(
            f"its text has {len(text):,} characters; at most {MAX_SCHEMA_CHARACTERS:,} are read"
        )
    return _plain(json.loads(text), 0)


def _plain(node: Any, depth: int) -> Any:
    """Strip decimal types from a schema, since a number of a million digits takes minutes to convert."""
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
class _TypeCost:
    """Bounds for one type: minimum bytes, steps without items, and maximum steps for each byte of items."""

    least: int
    once: int
    per_byte: int = 0


class _CostCalculator:
    """Computes the cost of a parsed schema, visiting each named type once."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._known: dict[str, _TypeCost] = {}
        self._open: set[str] = set()
        self._depth = 0

    def cost(self, schema: Any) -> Cost:
        size = self._of(schema)
        cost = Cost(size.once, size.per_byte)
        if cost.once > MAX_STEPS:
            raise RefusedSchemaError(
                f"every value takes {cost.once:,} steps to decode; at most {MAX_STEPS:,} are allowed"
            )
        return cost

    def _of(self, schema: Any) -> _TypeCost:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RefusedSchemaError(f"its values are nested more than {MAX_DEPTH} levels deep")
        try:
            return self._measured(schema)
        finally:
            self._depth -= 1

    def _measured(self, schema: Any) -> _TypeCost:
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

    def _by_name(self, name: str) -> _TypeCost:
        if name in _BYTES:
            return _TypeCost(_BYTES[name], 1)
        if name in self._open:
            raise RefusedSchemaError(
                f"{shortened(name, NAME_CHARACTERS)} contains itself; recursive schemas are not supported"
            )
        if name not in self._known:
            self._open.add(name)
            self._known[name] = self._declared(self._named[name])
            self._open.remove(name)
        return self._known[name]

    def _declared(self, schema: Mapping[str, Any]) -> _TypeCost:
        match schema["type"]:
            case "enum":
                return _TypeCost(1, 1)
            case "fixed":
                return _TypeCost(max(0, int(schema["size"])), 1)
            case _:
                fields = [self._of(field["type"]) for field in schema["fields"]]
                return _TypeCost(
                    sum(field.least for field in fields),
                    1 + sum(field.once for field in fields),
                    max((field.per_byte for field in fields), default=0),
                )

    def _union(self, branches: list[Any]) -> _TypeCost:
        sizes = [self._of(branch) for branch in branches]
        return _TypeCost(
            1 + min((size.least for size in sizes), default=0),
            # The decoder examines each branch to find the one that matches the reader's schema.
            1 + len(sizes) + max((size.once for size in sizes), default=0),
            max((size.per_byte for size in sizes), default=0),
        )

    def _items(self, item: _TypeCost, key_bytes: int, kind: str) -> _TypeCost:
        least = item.least + key_bytes
        if least == 0:
            raise RefusedSchemaError(f"items of its {kind} can take no bytes, so their number has no bound")
        once = item.once + key_bytes
        return _TypeCost(1, 2, max(item.per_byte, -(-once // least)))
