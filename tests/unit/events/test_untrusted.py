"""No schema, whoever wrote it, makes decoding cost more than the size of the record justifies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.events.registries import AnyRegistry
from zimage_stream.errors import WireError
from zimage_stream.events.codec import MAX_EVENT_BYTES, Codec
from zimage_stream.events.registry import Registry
from zimage_stream.events.schemas import PROMPT_REQUEST, current
from zimage_stream.events.untrusted import Cost, RefusedSchemaError, admit
from zimage_stream.settings import RegistrySettings

NOTHING = {"type": "record", "name": "Nothing", "fields": []}
EXABYTES = b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f"


def asking(extra: Any) -> str:
    """A request's schema with an additional first field, unknown to our reader."""
    schema = json.loads(current(PROMPT_REQUEST).text)
    return json.dumps(schema | {"fields": [{"name": "extra", "type": extra}, *schema["fields"]]})


def doubling(levels: int) -> Any:
    """A record of nested empty records, 2**depth of them."""
    fields: list[Any] = [{"name": "a", "type": {"type": "record", "name": "R0", "fields": []}}]
    for level in range(1, levels):
        pair = [{"name": name, "type": f"R{level - 1}"} for name in "ab"]
        fields.append({"name": f"a{level}", "type": {"type": "record", "name": f"R{level}", "fields": pair}})
    return {"type": "record", "name": "All", "fields": fields}


def nested(levels: int) -> Any:
    schema: Any = "int"
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


class Served:
    """A codec that gets every schema from one registry."""

    def __init__(self, server: AnyRegistry, registry: Registry) -> None:
        self._server = server
        self._codec = Codec(registry)
        self._ids = itertools.count(1)

    def decode(self, schema: str, body: bytes) -> None:
        number = next(self._ids)
        self._server.put(number, schema)
        self._codec.decode_request(b"\x00" + number.to_bytes(4, "big") + body)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with AnyRegistry() as server:
        registry = Registry(RegistrySettings(url=server.url))
        yield Served(server, registry)
        registry.close()


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"type": "array", "items": "null"}, "items of its array can take no bytes"),
        ({"type": "array", "items": NOTHING}, "items of its array can take no bytes"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "can take no bytes"),
        ({"type": "map", "values": {"type": "array", "items": "null"}}, "can take no bytes"),
        (["null", {"type": "array", "items": doubling(3)}], "can take no bytes"),
        ({"type": "record", "name": "R", "fields": [{"name": "r", "type": "R"}]}, "R contains itself"),
        (
            {"type": "record", "name": "R", "fields": [{"name": "r", "type": ["null", "R"]}]},
            "contains itself",
        ),
        (doubling(40), "steps to decode; at most"),
        (nested(70), "nested more than 64 levels deep"),
        ({"type": "enum", "name": "E", "symbols": [f"S{i:05}" for i in range(40_000)]}, "characters"),
    ],
)
def test_a_schema_of_unbounded_cost_is_refused(served: Served, extra: Any, says: str) -> None:
    with pytest.raises(RefusedSchemaError, match=rf"schema id \d+ is refused: .*{says}"):
        served.decode(asking(extra), EXABYTES * 9)


@pytest.mark.parametrize(
    "items", ["boolean", "int", "float", "double", "bytes", {"type": "fixed", "name": "F", "size": 4}]
)
@pytest.mark.parametrize("kind", ["array", "map"])
@pytest.mark.parametrize(
    "count", [EXABYTES, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00", b"\xfd" + b"\xff" * 7 + b"\x7f\x00"]
)
def test_an_item_count_beyond_the_record_is_an_error(
    served: Served, items: Any, kind: str, count: bytes
) -> None:
    schema = {"type": kind, "values" if kind == "map" else "items": items}
    with pytest.raises(WireError, match=r"does not decode|bytes follow"):
        served.decode(asking(schema), count)


def test_a_record_too_expensive_for_its_size_is_refused(served: Served) -> None:
    nulls = [{"name": f"n{i}", "type": "null"} for i in range(900)]
    fields = [*nulls, {"name": "one", "type": "boolean"}]
    wide = {"type": "array", "items": {"type": "record", "name": "Wide", "fields": fields}}
    with pytest.raises(WireError, match=r"could take .* steps; at most 8,388,608 are allowed"):
        served.decode(asking(wide), bytes(10_000))
    with pytest.raises(WireError, match=f"at most {MAX_EVENT_BYTES:,} are decoded"):
        served.decode(asking("int"), bytes(MAX_EVENT_BYTES + 1))


def test_a_number_of_a_million_digits_is_not_converted(served: Served) -> None:
    schema = json.loads(current(PROMPT_REQUEST).text)
    for field in schema["fields"]:
        if field["name"] == "prompt":
            field["type"] = {"type": "bytes", "logicalType": "decimal", "precision": 9}
    million = 1 << 20
    body = b"\x02r\x02t" + bytes([0x80 | (million << 1) & 0x7F, 0x80, 0x80, 0x01]) + b"\x7f" * million
    with pytest.raises(WireError):
        served.decode(json.dumps(schema), body)


def test_every_decoding_step_is_counted() -> None:
    item: dict[str, Any] = {
        "type": "record",
        "name": "I",
        "fields": [{"name": n, "type": "null"} for n in "abc"],
    }
    item["fields"].append({"name": "d", "type": ["null", "long"]})
    # For each item: the record, three nulls, the union and its two branches, the chosen branch.
    assert admit(json.dumps({"type": "array", "items": item})).cost == Cost(2, 1 + 3 + 3 + 1)
    assert admit(json.dumps({"type": "map", "values": "string"})).cost == Cost(2, 1)
    assert admit('"double"').cost == Cost(1, 0)


primitives = st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string"])
logical = st.sampled_from(
    [
        {"type": "long", "logicalType": "timestamp-millis"},
        {"type": "int", "logicalType": "date"},
        {"type": "bytes", "logicalType": "decimal", "precision": 9},
        {"type": "string", "logicalType": "uuid"},
        {"type": "fixed", "name": "Same", "size": 3},
        "Same",
    ]
)


def _records(types: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def record(number: int, held: list[Any]) -> Any:
        fields = [{"name": f"f{i}", "type": each} for i, each in enumerate(held)]
        return {"type": "record", "name": f"R{number}", "fields": fields}

    return st.builds(record, st.integers(0, 10**6), st.lists(types | st.just("R1"), max_size=4))


types = st.recursive(
    primitives | logical,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda values: {"type": "map", "values": values}, inner),
        st.lists(inner, max_size=3),
        st.builds(lambda size: {"type": "fixed", "name": "F", "size": size}, st.integers(-2, 9)),
        _records(inner),
    ),
    max_leaves=12,
)
bodies = st.lists(
    st.sampled_from([b"\x00", b"\x01", b"\x02", b"\x04", EXABYTES, b"abc"]) | st.binary(max_size=9)
)


@given(types, bodies.map(b"".join))
@example({"type": "array", "items": "null"}, EXABYTES)
@example({"type": "array", "items": "boolean"}, EXABYTES)
@example({"type": "record", "name": "R1", "fields": [{"name": "r", "type": ["null", "R1"]}]}, b"\x02" * 10**6)
def test_decoding_any_bytes_with_any_schema_ends(served: Served, extra: Any, body: bytes) -> None:
    with suppress(WireError):
        served.decode(asking(extra), body)
