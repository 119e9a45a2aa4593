"""Holds a decoded event to its reader's schema. Pure.

Avro resolution, as fastavro does it, takes a value's logical type from the schema it was written with: a
plain long where ours says timestamp-millis comes out as a number, a date where ours says int as a date.
"""

from __future__ import annotations

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
    if isinstance(schema, list):
        if value is None and "null" in schema:
            return None
        (schema,) = (each for each in schema if each != "null")
    if isinstance(schema, str):
        schema = {"type": schema}
    kind = schema["type"]
    if kind == "record" and isinstance(value, dict):
        inside = f"{field}." if field else ""
        return {f["name"]: conform(value[f["name"]], f["type"], inside + f["name"]) for f in schema["fields"]}
    if kind == "map" and isinstance(value, dict):
        return {name: conform(each, schema["values"], f"{field}.{name}") for name, each in value.items()}
    if schema.get("logicalType") == "timestamp-millis":
        return _time(value, field)
    # A bool is an int to Python, and to nobody else.
    if isinstance(value, _PRIMITIVES.get(kind, ())) and isinstance(value, bool) == (kind == "boolean"):
        return value
    raise WireError(f"{field}: got {shorten(value)}, takes {kind}")


def _time(value: Any, field: str) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return _EPOCH + timedelta(milliseconds=value)
        except OverflowError:
            pass
    raise WireError(f"{field}: got {shorten(value)}, takes a time in milliseconds since 1970, in UTC")
