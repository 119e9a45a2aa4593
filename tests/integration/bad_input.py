"""Everything a producer can get wrong, with its outcome: the source of a table in ``docs/wire.md``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import fastavro

from zimage_stream.events import PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Code, ImageResult, Source, Status
from zimage_stream.events.schemas import PROMPT_REQUEST, current

GOOD = PromptRequest(prompt="a red heart on a white background", request_id="good", width=64, height=64)
HEADER_BYTES = 10
_TIME_OF_DAY = {"type": "int", "logicalType": "time-millis"}
_DATE = {"type": "int", "logicalType": "date"}
MAX_PIXELS = 1024 * 1024
"""Maximum image size of the worker under test, in pixels."""

Register = Callable[[str], int]
"""Function that registers a schema's text and returns its id."""


@dataclass(frozen=True)
class Case:
    """A record that is sent.

    Attributes:
        sent: description of the record, as in the docs.
        value: the record's value, or a function of :data:`Register` if its schema must be registered.
        outcome: status of the result, or code of the dead letter.
        says: part of the message; empty if there is none.
        has_result: whether a result is published, because the request's id could be read.
    """

    sent: str
    value: bytes | Callable[[Register], bytes] | None
    outcome: str
    says: str = ""
    has_result: bool = True

    @property
    def dies(self) -> bool:
        """Whether it ends as a dead letter."""
        return self.outcome in set(Code) - {Code.EXPIRED}


def written(**changes: Any) -> bytes:
    """Encode a request with these fields, valid or not."""
    return Codec().encode_request(replace(GOOD, **changes), "requests")


def _with_bytes(placeholder: str, raw: bytes) -> bytes:
    """Encode a request whose prompt contains bytes that no encoder would write."""
    assert len(placeholder) == len(raw)
    return written(request_id="raw", prompt=f"a {placeholder} b").replace(placeholder.encode(), raw)


def _future(**more: Any) -> tuple[str, bytes]:
    """Return a later version of the schema, and a request encoded with it."""
    schema = json.loads(current(PROMPT_REQUEST).text)
    schema["fields"].append({"name": "style", "type": "string", "default": "photo"} | more)
    out = io.BytesIO()
    request = {"request_id": "future", "prompt": "a star", "width": 64, "height": 64, "style": "ink"}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), request)
    return json.dumps(schema), out.getvalue()


def _in_registry(register: Register) -> bytes:
    text, body = _future()
    return b"\x00" + register(text).to_bytes(4, "big") + body


def _foreign(register: Register) -> bytes:
    fields = [{"name": "prompt", "type": "string"}]
    text = json.dumps({"type": "record", "name": "PromptRequest", "namespace": "zimage", "fields": fields})
    return b"\x00" + register(text).to_bytes(4, "big") + b"\x0ca star"


def _typed(name: str, avro: Any, value: Any) -> Callable[[Register], bytes]:
    """Encode a request with a foreign schema, in which a field has another type than in ours."""
    schema = json.loads(current(PROMPT_REQUEST).text)
    for field in schema["fields"]:
        if field["name"] == name:
            field["type"] = avro
            field.pop("default", None)
    out = io.BytesIO()
    request = {"request_id": f"typed-{name}", "prompt": "a star", "width": 64, "height": 64, name: value}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), request)
    text = json.dumps(schema)
    return lambda register: b"\x00" + register(text).to_bytes(4, "big") + out.getvalue()


def _preceded_by(extra: Any, body: bytes) -> Callable[[Register], bytes]:
    """Encode a request with a schema whose first field has this type, and these bytes as its value."""
    schema = json.loads(current(PROMPT_REQUEST).text)
    schema["fields"].insert(0, {"name": "extra", "type": extra})
    text = json.dumps(schema)
    return lambda register: b"\x00" + register(text).to_bytes(4, "big") + body + written()[HEADER_BYTES:]


def _future_fingerprint() -> bytes:
    text, body = _future(default="print")
    canonical = fastavro.schema.to_parsing_canonical_form(json.loads(text))
    return b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")) + body


def _late() -> bytes:
    """Encode a request whose ``expires_at`` is beyond the range of datetime."""
    schema = json.loads(current(PROMPT_REQUEST).text)
    for field in schema["fields"]:
        if field["name"] == "expires_at":
            field["type"] = ["null", "long"]
    out = io.BytesIO()
    request = {"request_id": "late", "prompt": "a star", "expires_at": 2**62}
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), request)
    return written()[:HEADER_BYTES] + out.getvalue()


def _result() -> bytes:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    source = Source(topic="t", partition=0, offset=0)
    result = ImageResult(
        request_id="r", status=Status.SUCCEEDED, source=source, requested_at=at, completed_at=at
    )
    return Codec().encode_result(result, "t")


def _unreadable(sent: str, value: Any, says: str) -> Case:
    return Case(sent, value, "UNDECODABLE", says, has_result=False)


def _unknown(sent: str, value: bytes, says: str) -> Case:
    return Case(sent, value, "UNKNOWN_SCHEMA", says, has_result=False)


def _invalid(sent: str, says: str, code: str = "INVALID_REQUEST", **changes: Any) -> Case:
    return Case(sent, written(**({"request_id": "invalid"} | changes)), code, says)


def _served(sent: str, **changes: Any) -> Case:
    return Case(sent, written(**changes), "SUCCEEDED")


CASES = (
    _unreadable("bytes that are not Avro", b"\x7fELF", "starts with 7f 45, which is neither"),
    _unreadable("a null value", None, "the record has no value"),
    _unreadable("an empty value", b"", "the record's value is empty"),
    _unreadable("a truncated fingerprint", b"\xc3\x01\x00", "ends within its schema's fingerprint"),
    _unreadable("a truncated schema id", b"\x00\x00", "ends within its schema's id"),
    _unreadable("a truncated event", written()[:-3], "does not decode as zimage.PromptRequest"),
    _unreadable(
        "extra bytes after the event",
        written() + b"\x00\x00",
        "2 extra bytes follow the zimage.PromptRequest",
    ),
    _unreadable("another event of ours", _result(), "holds zimage.ImageResult, not zimage.PromptRequest"),
    _unreadable("a lone surrogate in the prompt", _with_bytes("XYZ", b"\xed\xa0\x80"), "UnicodeDecodeError"),
    _unreadable(
        "a length of 4 exabytes",
        written()[:HEADER_BYTES] + b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f",
        "does not decode as zimage.PromptRequest",
    ),
    _unknown("an unknown fingerprint", b"\xc3\x01" + bytes(8) + b"x", "no published schema has"),
    _unknown("a future schema, by fingerprint", _future_fingerprint(), "upgrade this reader"),
    _unknown("an unknown schema id", b"\x00\x7f\xff\xff\xffx", "is not in the registry"),
    Case("a future schema, in the registry", _in_registry, "SUCCEEDED"),
    _unreadable("a foreign schema of the same name", _foreign, "cannot be read as the current"),
    Case("a time whose schema type is a plain long", _typed("created_at", "long", 5), "SUCCEEDED"),
    _unreadable(
        "a time of day instead of a time",
        _typed("created_at", _TIME_OF_DAY, 5),
        "created_at: got datetime.time",
    ),
    _unreadable("a date instead of a width", _typed("width", _DATE, 64), "width: got datetime.date"),
    _unreadable(
        "a plain long beyond the year 9999", _typed("created_at", "long", 2**62), "created_at: got 4611"
    ),
    _unreadable(
        "4 quintillion nulls in an array",
        _preceded_by({"type": "array", "items": "null"}, b"\xfe" + b"\xff" * 7 + b"\x7f\x00"),
        "items of its array can take no bytes",
    ),
    _unreadable(
        "a recursive type, 100,000 levels deep",
        _preceded_by(
            {"type": "record", "name": "Deep", "fields": [{"name": "deeper", "type": ["null", "Deep"]}]},
            b"\x02" * 100_000 + b"\x00",
        ),
        "zimage.Deep contains itself",
    ),
    _invalid(
        "a record of more than 1 MiB",
        "record: got '1,048",
        attributes={"big": "x" * (1 << 20)},
    ),
    _invalid("a width that is not a multiple of 16", "width: got 65, takes a multiple of 16", width=65),
    _invalid("a width of 0", "width: got 0, takes", width=0),
    _invalid("a negative height", "height: got -64, takes", height=-64),
    _invalid("a width of one billion", "width: got 1000000000, takes", width=1_000_000_000),
    _invalid(
        "a size above this deployment's limit",
        "width x height of at most 1,048,576 pixels",
        "UNSUPPORTED_SIZE",
        width=2048,
        height=1024,
    ),
    _invalid("an empty prompt", "prompt: got '', takes 1 to 2,000", prompt=""),
    _invalid("a prompt of white space", "prompt: got ' \\n ', takes 1 to 2,000", prompt=" \n "),
    _invalid("a prompt of invisible characters", "at least one of them visible", prompt="\u200b\u3164"),
    _invalid("a prompt of 2,001 characters", "(2003 characters), takes 1 to 2,000", prompt="长" * 2001),
    _invalid("a NUL in the prompt", "text without control characters (it contains U+0000)", prompt="a\0b"),
    _invalid("an escape sequence in the prompt", "(it contains U+001B)", prompt="\x1b[2J"),
    _served("right-to-left marks in the prompt", request_id="rtl", prompt="\u202eשלום\u202c \u200fa heart"),
    _served("emoji in the prompt", request_id="emoji", prompt="👩🏽‍🚀 a heart ❤️"),
    _served("combining marks in the prompt", request_id="combining", prompt="cafe\u0301 " + "e\u0301" * 50),
    _invalid(
        "a request id with ../",
        "request_id: got '../../etc/passwd', takes 1 to",
        request_id="../../etc/passwd",
    ),
    _invalid("an empty request id", "request_id: got '', takes 1 to 128", request_id=""),
    _invalid("a tenant of 10 kB", "tenant: got 'ttt", tenant="t" * 10_000),
    _invalid(
        "33 attributes",
        "attributes: got '33 entries', takes at most 32",
        attributes={str(n): "" for n in range(33)},
    ),
    _invalid("attributes of more than 8 KiB", "takes at most 8,192 bytes", attributes={"a": "b" * 9_000}),
    _invalid("a batch id of 129 characters", "batch_id: got", batch_id="b" * 129),
    _invalid("an unknown format", "format: got 'bmp', takes one of png, webp, jpeg", format="bmp"),
    _invalid("a quality of 0", "quality: got 0, takes a whole number from 1 to 100", quality=0),
    _invalid("51 steps", "steps: got 51, takes a whole number from 1 to 50", steps=51),
    _invalid(
        "guidance, which Turbo does not support", "guidance_scale: got 5.0, takes 0", guidance_scale=5.0
    ),
    _invalid(
        "a guidance that is not a number",
        "guidance_scale: got nan, takes a number",
        guidance_scale=float("nan"),
    ),
    _invalid("a negative seed", "seed: got -1, takes", seed=-1),
    _invalid("a priority of 11", "priority: got 11, takes a whole number from -10 to 10", priority=11),
    _invalid("four previews", "previews: got 4, takes a whole number from 0 to 3", previews=4),
    Case(
        "an expiry in the past",
        written(request_id="expired", expires_at=datetime.now(UTC) - timedelta(days=1)),
        "EXPIRED",
    ),
    _unreadable("an expiry after the year 9999", _late(), "does not decode as zimage.PromptRequest"),
    _served("a request", request_id="twice"),
    _served("the same request again", request_id="twice"),
    _invalid(
        "the same request id with other parameters",
        "request id twice was used before by tenant default",
        "ID_CONFLICT",
        request_id="twice",
        prompt="something else",
    ),
)
