"""Holds a decoded event to its reader's schema. Pure.

Avro resolution, as fastavro does it, takes a value's logical type from the schema it was written with: a
plain long where ours says timestamp-millis comes out as a number, a date where ours says int as a date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from zimage_stream.errors import WireError, shorten

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRIMITIVES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "int": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "string": (str,),
    "bytes": (bytes,),
    "enum": (str,),
}


def conform(value: Any, schema: Any, field: str = "") -> Any:
    """The value with the types that the schema promises.

    Args:
        schema: the reader's, parsed; records, maps, unions with null and primitives.
        field: where in the event the value is, for the message.

    Raises:
        WireError: it has another type, which stands for nothing of this one.
    """
    if value is None and isinstance(schema, list) and "null" in schema:
        return None
    schema = _one_type(schema)
    kind = schema["type"]
    if kind == "record" and isinstance(value, dict):
        return _record(value, schema["fields"], f"{field}." if field else "")
    if kind == "map" and isinstance(value, dict):
        return {name: conform(each, schema["values"], f"{field}.{name}") for name, each in value.items()}
    if schema.get("logicalType") == "timestamp-millis":
        return _time(value, field)
    if not _is_primitive(value, kind):
        raise WireError(f"{field}: got {shorten(value)}, takes {kind}")
    return value


def _one_type(schema: Any) -> Mapping[str, Any]:
    """What a schema says of a value; a union's says it of one that is not null."""
    if isinstance(schema, list):
        (schema,) = (each for each in schema if each != "null")
    return {"type": schema} if isinstance(schema, str) else schema


def _record(value: Mapping[str, Any], fields: Sequence[Mapping[str, Any]], inside: str) -> dict[str, Any]:
    return {f["name"]: conform(value[f["name"]], f["type"], inside + f["name"]) for f in fields}


def _is_primitive(value: Any, kind: str) -> bool:
    # A bool is an int to Python, and to nobody else.
    return isinstance(value, _PRIMITIVES.get(kind, ())) and isinstance(value, bool) == (kind == "boolean")


def _time(value: Any, field: str) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return _EPOCH + timedelta(milliseconds=value)
        except OverflowError:
            pass
    raise WireError(f"{field}: got {shorten(value)}, takes a time in milliseconds since 1970, in UTC")
