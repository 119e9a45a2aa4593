"""Checks a decoded event against the reader's schema. Pure.

In Avro schema resolution, fastavro takes a value's logical type from the writer's schema: a plain long stays
a number even if our schema says timestamp-millis, and a date stays a date even if ours says int.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from zimage_stream.errors import WireError, short_repr

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
    """Convert a value to the types of the schema.

    Args:
        value: the decoded value.
        schema: the reader's parsed schema, of records, maps, unions with null and primitives.
        field: path of the value in the event, for error messages.

    Raises:
        WireError: the value has another type and cannot be converted.
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
        raise WireError(f"{field}: got {short_repr(value)}, takes {kind}")
    return value


def _one_type(schema: Any) -> Mapping[str, Any]:
    """Return the schema of a value as a mapping; for a union with null, that of the other branch."""
    if isinstance(schema, list):
        (schema,) = (each for each in schema if each != "null")
    return {"type": schema} if isinstance(schema, str) else schema


def _record(value: Mapping[str, Any], fields: Sequence[Mapping[str, Any]], inside: str) -> dict[str, Any]:
    return {f["name"]: conform(value[f["name"]], f["type"], inside + f["name"]) for f in fields}


def _is_primitive(value: Any, kind: str) -> bool:
    # In Python a bool is an int, but not in Avro.
    return isinstance(value, _PRIMITIVES.get(kind, ())) and isinstance(value, bool) == (kind == "boolean")


def _time(value: Any, field: str) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return _EPOCH + timedelta(milliseconds=value)
        except OverflowError:
            pass
    raise WireError(f"{field}: got {short_repr(value)}, takes a time in milliseconds since 1970, in UTC")
