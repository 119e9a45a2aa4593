"""Hostile records: anything that may be written to the requests topic, and its permitted outcomes. Pure.

Each is drawn from a random generator, so a seed and a number reproduce the same record.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.chaos.workloads import image_request
from tests.fleet.wire import RawHeader
from zimage_stream import PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.schemas import PROMPT_REQUEST, current

MADE = ("SUCCEEDED",)
REFUSED = ("FAILED/INVALID_REQUEST", "FAILED/UNSUPPORTED_SIZE")
UNREAD = ("dead/UNDECODABLE",)
UNKNOWN = ("dead/UNKNOWN_SCHEMA",)
NO_REQUEST = UNREAD + UNKNOWN
ANYTHING = (*MADE, *REFUSED, *NO_REQUEST, "EXPIRED/EXPIRED", "FAILED/ID_CONFLICT")

PLAIN_ID, FAILING_ID, DRIPPING_ID, ABSENT_ID = 1, 500, 501, 404
HOSTILE_IDS = 100
"""First id of the hostile schemas, which follow in the order of :data:`HOSTILE_SCHEMAS`."""
_HEADER_BYTES = 10
_TEXT = current(PROMPT_REQUEST).text
_CODEC = Codec()


@dataclass(frozen=True)
class Poison:
    """One hostile record.

    Attributes:
        kind: name of its kind.
        allowed: permitted outcomes, in the judge's terms.
        timestamp: in milliseconds; 0 for now.
        codec: compression codec of its batch.
    """

    kind: str
    value: bytes | None
    allowed: tuple[str, ...]
    key: bytes | None = b"key"
    headers: tuple[RawHeader, ...] = ()
    timestamp: int = 0
    codec: str = "none"

    def __str__(self) -> str:
        sizes = f"{len(self.value or b''):,} bytes of value, {len(self.key or b'')} of key"
        return f"{self.kind}: {sizes}, {len(self.headers)} headers, at {self.timestamp}, {self.codec}"


def schema_with(**changes: Any) -> dict[str, Any]:
    """Our schema under its own name, but with other parts."""
    return {**json.loads(_TEXT), **changes}


def _record(name: str, *fields: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": field, "type": kind} for field, kind in fields],
        **more,
    }


def _nested(depth: int) -> Any:
    kind: Any = "int"
    for _ in range(depth):
        kind = {"type": "array", "items": kind}
    return kind


def _doubling(levels: int) -> dict[str, Any]:
    """Nested records of two records each, with empty ones innermost: 2^levels values in no bytes."""
    kind: Any = _record("zimage.Level0")
    for level in range(1, levels):
        kind = _record(f"zimage.Level{level}", ("a", kind), ("b", f"zimage.Level{level - 1}"))
    return _record("zimage.PromptRequest", ("a", kind))


HOSTILE_SCHEMAS: tuple[tuple[str, Any], ...] = (
    ("JSON", {"properties": {"prompt": {"type": "string"}}}),
    ("JSON", {"type": "object"}),
    ("PROTOBUF", 'syntax = "proto3"; message PromptRequest { string prompt = 1; }'),
    ("AVRO", "no JSON at all {"),
    ("AVRO", "{}"),
    ("AVRO", "[]"),
    ("AVRO", "null"),
    ("AVRO", '"string"'),
    ("AVRO", '"no.such.type"'),
    ("AVRO", "x" * 300_000),
    ("AVRO", _record("other.Event", ("prompt", "string"))),
    ("AVRO", _record("zimage.PromptRequest")),
    ("AVRO", _record("zimage.PromptRequest", ("prompt", "string"))),
    ("AVRO", _record("zimage.PromptRequest", ("prompt", {"type": "array", "items": "null"}))),
    ("AVRO", _record("zimage.PromptRequest", ("more", {"type": "array", "items": "null"}))),
    ("AVRO", _record("zimage.PromptRequest", ("more", {"type": "map", "values": "null"}))),
    (
        "AVRO",
        _record("zimage.PromptRequest", ("more", {"type": "array", "items": _record("zimage.Nothing")})),
    ),
    ("AVRO", _record("zimage.PromptRequest", ("more", {"type": "array", "items": "boolean"}))),
    ("AVRO", _record("zimage.PromptRequest", ("more", {"type": "map", "values": "string"}))),
    ("AVRO", _record("zimage.PromptRequest", ("more", "zimage.PromptRequest"))),
    ("AVRO", _record("zimage.PromptRequest", ("more", ["null", "zimage.PromptRequest"]))),
    ("AVRO", _record("zimage.PromptRequest", ("more", _nested(60)))),
    ("AVRO", '{"type": "array", "items": ' * 5_000 + '"int"' + "}" * 5_000),
    ("AVRO", _doubling(40)),
    ("AVRO", _record("zimage.PromptRequest", *((f"field_{n}", "long") for n in range(3_000)))),
    (
        "AVRO",
        _record(
            "zimage.PromptRequest",
            ("more", ["null", *({"type": "fixed", "size": n + 1, "name": f"F{n}"} for n in range(500))]),
        ),
    ),
    (
        "AVRO",
        _record(
            "zimage.PromptRequest",
            ("more", {"type": "enum", "name": "E", "symbols": [f"S{n}" for n in range(10_000)]}),
        ),
    ),
    ("AVRO", _record("zimage.PromptRequest", ("more", {"type": "fixed", "name": "Huge", "size": 2**62}))),
    (
        "AVRO",
        _record(
            "zimage.PromptRequest", ("width", {"type": "bytes", "logicalType": "decimal", "precision": 10**6})
        ),
    ),
    ("AVRO", _record("zimage.PromptRequest", ("created_at", {"type": "int", "logicalType": "date"}))),
    ("AVRO", _record("zimage.PromptRequest", ("prompt", {"type": "string", "logicalType": "uuid"}))),
    ("AVRO", schema_with(fields=[])),
    ("AVRO", schema_with(aliases=["a.b", "zimage.ImageResult"], name="zimage.Renamed")),
    ("AVRO", schema_with(type="error")),
    ("AVRO", {"type": "record", "name": "zimage.PromptRequest"}),
    ("AVRO", {"type": ["record"], "name": "zimage.PromptRequest", "fields": 7}),
)


def schemas() -> Mapping[int, tuple[str, Any]]:
    """Kind and schema of each id that the hostile registry serves; text is served verbatim."""
    hostile = {HOSTILE_IDS + number: each for number, each in enumerate(HOSTILE_SCHEMAS)}
    return {PLAIN_ID: ("AVRO", _TEXT), **hostile}


def request_bytes(request: PromptRequest) -> bytes:
    """A request as written by a client without a registry."""
    return _CODEC.encode_request(request, "any")


def framed(schema_id: int, request: PromptRequest) -> bytes:
    """A request as written by a client with a registry."""
    return b"\0" + struct.pack(">I", schema_id) + request_bytes(request)[_HEADER_BYTES:]


def _valid(rng: random.Random, **fields: Any) -> PromptRequest:
    return image_request(f"hostile {rng.random()}", request_id=f"h-{rng.getrandbits(64):x}", **fields)


def timestamps(rng: random.Random) -> Poison:
    at = rng.choice([1, -1, -(10**15), 1_785_000_000_000_000, 1_785_000_000_000_000_000, 2**63 - 1, -(2**63)])
    return Poison("timestamp", request_bytes(_valid(rng)), MADE, timestamp=at)


def odd_headers(rng: random.Random) -> Poison:
    names = [
        b"",
        b"a\0b",
        b"\xff\xfe",
        b"mine",
        "名".encode(),
        b"x" * 5_000,
        b"\x1b]52;c;AAAA\x07",
        b"traceparent",
    ]
    values = [None, b"", b"\0", b"\xff" * 100, b"00-zz-zz-zz", b"v" * 10_000]
    headers = tuple((rng.choice(names), rng.choice(values)) for _ in range(rng.randint(1, 12)))
    if rng.random() < 0.5:
        return Poison("odd headers", request_bytes(_valid(rng)), MADE, headers=headers)
    return Poison("odd headers", rng.randbytes(20), NO_REQUEST, headers=headers)


def reserved_headers(rng: random.Random) -> Poison:
    names = (
        *(b"ce_id", b"ce_type", b"ce_time", b"ce_specversion", b"content-type", b"tracestate"),
        *(b"zimage.code", b"zimage.attempts", b"zimage.replays", b"zimage.replay-of", b"zimage.value-sha256"),
        *(b"__connect.errors.topic", b"__connect.errors.partition", b"__connect.errors.offset"),
    )
    headers = tuple(
        (rng.choice(names), rng.choice([None, b"", b"-1", b"\xff", b"9" * 400])) for _ in range(6)
    )
    value, allowed = rng.choice([(request_bytes(_valid(rng)), MADE), (rng.randbytes(9), NO_REQUEST)])
    return Poison("reserved headers", value, allowed, headers=headers)


def keys(rng: random.Random) -> Poison:
    key = rng.choice([None, b"", b"\xff\x00", b"k" * 100_000, b"\n"])
    value, allowed = rng.choice([(request_bytes(_valid(rng)), MADE), (b"", UNREAD)])
    return Poison("key", value, allowed, key=key)


def small_values(rng: random.Random) -> Poison:
    return Poison(
        "small value", rng.choice([None, b"", b"\0", b"\xc3", b"\xc3\x01", rng.randbytes(1)]), NO_REQUEST
    )


def truncated(rng: random.Random) -> Poison:
    whole = rng.choice([request_bytes(_valid(rng)), framed(PLAIN_ID, _valid(rng))])
    return Poison("truncated", whole[: rng.randrange(len(whole))], NO_REQUEST)


def trailing(rng: random.Random) -> Poison:
    return Poison("trailing bytes", request_bytes(_valid(rng)) + rng.randbytes(rng.randint(1, 50)), UNREAD)


def flipped(rng: random.Random) -> Poison:
    value = bytearray(rng.choice([request_bytes(_valid(rng)), framed(PLAIN_ID, _valid(rng))]))
    for _ in range(rng.randint(1, 4)):
        value[rng.randrange(len(value))] ^= 1 << rng.randrange(8)
    return Poison("flipped bits", bytes(value), ANYTHING)


def random_bodies(rng: random.Random) -> Poison:
    start = rng.choice([request_bytes(_valid(rng))[:_HEADER_BYTES], b"\0" + struct.pack(">I", PLAIN_ID), b""])
    return Poison("random body", start + rng.randbytes(rng.randint(0, 200)), ANYTHING)


def unknown_ids(rng: random.Random) -> Poison:
    number = rng.choice([0, ABSENT_ID, 2**31, 2**32 - 1, rng.getrandbits(32) | 1 << 20])
    return Poison("unknown id", framed(number, _valid(rng)), UNKNOWN)


def unknown_fingerprints(rng: random.Random) -> Poison:
    return Poison("unknown fingerprint", b"\xc3\x01" + rng.randbytes(8) + rng.randbytes(40), UNKNOWN)


def hostile_schemas(rng: random.Random) -> Poison:
    number = HOSTILE_IDS + rng.randrange(len(HOSTILE_SCHEMAS))
    # Counts of 10^12 and more, negative counts, and data written with another schema.
    counts = [b"\x80\xc0\xca\xf3\x84\xa3\x02", b"\xff" * 9 + b"\x01", b"\x01", b"\x02" * 60, b"\0" * 30]
    body = rng.choice([*counts, framed(0, _valid(rng))[5:], rng.randbytes(200)])
    # A schema that differs from ours only in name can read what ours has written.
    return Poison(f"hostile schema {number}", b"\0" + struct.pack(">I", number) + body, ANYTHING)


def against_the_rules(rng: random.Random) -> Poison:
    fields: Any = rng.choice(
        [
            {"width": 65},
            {"steps": 0},
            {"height": -64},
            {"format": "gif"},
            {"seed": -1},
            {"tenant": "a/b"},
            {"prompt": "\x1b]52;c;AAAA\x07"},
            {"prompt": "\u200b"},
            {"prompt": "x" * 100_000},
            {"quality": 0},
            {"priority": 2**31 - 1},
            {"batch_id": "\x00"},
            {"attributes": {"a" * 9_000: "b"}},
        ]
    )
    request = PromptRequest(**{"prompt": "hostile", "width": 64, "height": 64, **fields})
    return Poison(f"rule {next(iter(fields))}", request_bytes(request), REFUSED)


def codecs(rng: random.Random) -> Poison:
    codec = rng.choice(["gzip", "snappy", "lz4", "zstd"])
    return Poison("codec", request_bytes(_valid(rng)), MADE, codec=codec)


def large_values(rng: random.Random) -> Poison:
    size = rng.randint(2 << 20, 7 << 20)
    start = rng.choice([b"\xff", request_bytes(_valid(rng)), b"\0" + struct.pack(">I", PLAIN_ID)])
    codec = rng.choice(["gzip", "lz4", "zstd"])
    return Poison("large value", start + bytes(size), (*NO_REQUEST, *REFUSED), codec=codec)


def many_headers(rng: random.Random) -> Poison:
    return Poison("many headers", b"poison", UNREAD, headers=((b"h", b"v"),) * rng.randint(1_000, 20_000))


def heavy_headers(rng: random.Random) -> Poison:
    return Poison("heavy headers", b"poison", UNREAD, headers=((b"h", bytes(100_000)),) * 6)


def endless_headers(rng: random.Random) -> Poison:
    return Poison(
        "endless headers", b"poison", UNREAD, headers=((b"h", b"v"),) * rng.choice([100_000, 100_001])
    )


Draw = Callable[[random.Random], Poison]

LIGHT: tuple[Draw, ...] = (
    timestamps,
    odd_headers,
    reserved_headers,
    keys,
    small_values,
    truncated,
    trailing,
    flipped,
    random_bodies,
    unknown_ids,
    unknown_fingerprints,
    hostile_schemas,
    hostile_schemas,
    against_the_rules,
    codecs,
)
HEAVY: tuple[Draw, ...] = (large_values, many_headers, heavy_headers, endless_headers)
HEAVY_EVERY = 50


def draw(seed: int, number: int) -> Poison:
    """The record with this number; every fiftieth is a heavy one."""
    rng = random.Random(f"{seed}/{number}")
    if number % HEAVY_EVERY == HEAVY_EVERY - 1:
        return HEAVY[number // HEAVY_EVERY % len(HEAVY)](rng)
    return LIGHT[number % len(LIGHT)](rng)
