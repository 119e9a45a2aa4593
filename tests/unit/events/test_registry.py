"""Whatever a registry answers for an id, it is decoded, awaited or refused, and no other id waits for it."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import fastavro
import pytest

from tests.fleet.workers import until
from tests.unit.events.registries import AnyRegistry
from zimage_stream.errors import RegistryUnavailableError, UnknownSchemaError
from zimage_stream.events import registry as module
from zimage_stream.events.codec import Codec
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.registry import (
    GIVE_UP_S,
    MAX_ASKED,
    Registry,
    SchemaPendingError,
    SchemaUnavailableError,
)
from zimage_stream.events.schemas import PROMPT_REQUEST, current
from zimage_stream.events.untrusted import RefusedSchemaError
from zimage_stream.settings import RegistrySettings

OURS = json.loads(current(PROMPT_REQUEST).text)


@pytest.fixture
def server() -> Iterator[AnyRegistry]:
    with AnyRegistry() as serving:
        yield serving


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def registry(server: AnyRegistry, clock: list[float]) -> Iterator[Registry]:
    made = Registry(RegistrySettings(url=server.url), clock=lambda: clock[0])
    yield made
    made.close()


def test_an_error_page_is_not_quoted_whole(server: AnyRegistry, registry: Registry) -> None:
    page = {"error_code": 50001, "message": "a page: " + "x" * (4 << 20)}
    server.answers["/schemas/ids/7"] = server.answers["/schemas/types"] = (503, page)
    with pytest.raises(RegistryUnavailableError, match="answered 503: a page: x") as raised:
        registry.schema(7)
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ('{"properties": {"prompt": {"type": "string"}}}', "JSON", "is a JSON schema"),
        ('syntax = "proto3"; message A {}', "PROTOBUF", "is a PROTOBUF schema"),
        # Some registries and proxies omit the schema type, or state a wrong one.
        ('{"properties": {}}', "AVRO", "is not an Avro schema: KeyError"),
        ("{", "AVRO", "is not an Avro schema: JSONDecodeError"),
        ("7", "AVRO", "is not an Avro schema"),
        ("null", "AVRO", "is not an Avro schema"),
        ('{"type": 7}', "AVRO", "is not an Avro schema"),
        ('{"type": "record"}', "AVRO", "is not an Avro schema"),
        ('{"type": "array", "items": {"type": "nonsense"}}', "AVRO", "is not an Avro schema"),
        ("[" * 5_000, "AVRO", "is not an Avro schema: RecursionError"),
    ],
)
def test_a_schema_that_is_not_avro_is_refused_without_another_query(
    server: AnyRegistry, registry: Registry, text: str, kind: str, says: str
) -> None:
    server.put(7, text, kind)
    for _ in range(2):
        with pytest.raises(UnknownSchemaError, match=f"schema id 7 {says}"):
            registry.schema(7)
    assert server.asked.count("/schemas/ids/7") == 1


@pytest.mark.parametrize("body", [[], {}, {"schema": 7}, {"schema": None}, "text", None, 7])
def test_a_malformed_answer_is_an_outage_or_an_unknown_schema(
    server: AnyRegistry, registry: Registry, body: Any
) -> None:
    server.answers["/schemas/ids/7"] = 200, body
    with pytest.raises((UnknownSchemaError, RegistryUnavailableError)):
        registry.schema(7)


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_an_id_that_the_registry_refuses_is_unknown(
    server: AnyRegistry, registry: Registry, status: int
) -> None:
    server.fail(7, status)
    with pytest.raises(UnknownSchemaError, match="schema id 7"):
        registry.schema(7)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_error_for_all_ids_is_an_outage_and_counts_against_none(
    server: AnyRegistry, registry: Registry, clock: list[float], status: int
) -> None:
    server.fail(7, status)
    server.answers["/schemas/types"] = status, {}
    for clock[0] in (0.0, 100.0, 200.0, 300.0, 400.0, 500.0):
        with pytest.raises(RegistryUnavailableError) as caught:
            registry.schema(7)
        assert not isinstance(caught.value, SchemaUnavailableError)
    before = len(server.asked)
    with pytest.raises(RegistryUnavailableError):  # another id, at the same moment: no further query
        registry.schema(8)
    assert len(server.asked) == before


def test_an_error_for_one_id_holds_up_no_other_and_is_given_up(
    server: AnyRegistry, registry: Registry, clock: list[float]
) -> None:
    server.fail(7)
    server.put(8, OURS)
    with pytest.raises(SchemaUnavailableError, match="schema id 7"):
        registry.schema(7)
    assert registry.schema(8).parsed["name"] == PROMPT_REQUEST
    asked = len(server.asked)
    with pytest.raises(SchemaUnavailableError):  # no second query at once
        registry.schema(7)
    assert len(server.asked) == asked
    for second in range(1, int(GIVE_UP_S)):
        clock[0] = float(second)
        with pytest.raises(SchemaUnavailableError):
            registry.schema(7)
    clock[0] = 2 * GIVE_UP_S
    with pytest.raises(UnknownSchemaError, match=r"schema id 7.*it answers other queries"):
        registry.schema(7)
    # An id that is repaired is read: no verdict is permanent.
    server.put(7, OURS)
    clock[0] += 60.0
    assert registry.schema(7).parsed["name"] == PROMPT_REQUEST


@pytest.fixture
def impatient(server: AnyRegistry) -> Iterator[Registry]:
    """A registry client that waits for a response for only a millisecond."""
    made = Registry(RegistrySettings(url=server.url), patience_s=0.001)
    yield made
    made.close()


def wait_for_schema(registry: Registry, schema_id: int) -> Any:
    """The schema with an id, once its response has arrived."""

    def read() -> Any:
        with suppress(SchemaPendingError):
            return registry.schema(schema_id).parsed
        return None

    return until(read, 30, f"schema id {schema_id} is known")


def test_a_slow_answer_holds_up_no_other(server: AnyRegistry, impatient: Registry) -> None:
    server.put(7, OURS)
    server.put(8, OURS)
    goes_on = server.hold(7)
    for _ in range(3):
        with pytest.raises(SchemaPendingError, match="schema id 7"):
            impatient.schema(7)
    assert wait_for_schema(impatient, 8)["name"] == PROMPT_REQUEST
    goes_on.set()
    assert wait_for_schema(impatient, 7)["name"] == PROMPT_REQUEST
    assert server.asked.count("/schemas/ids/7") == 1


def test_the_number_of_queries_in_progress_is_limited(server: AnyRegistry, impatient: Registry) -> None:
    for schema_id in range(MAX_ASKED + 1):
        server.put(schema_id, OURS)
        server.hold(schema_id)
        with pytest.raises(SchemaPendingError):
            impatient.schema(schema_id)
    until(lambda: len(server.asked) >= MAX_ASKED, 30, "the registry has received all queries")
    for schema_id in range(MAX_ASKED + 1):
        server.hold(schema_id).set()
    for schema_id in range(MAX_ASKED + 1):
        assert wait_for_schema(impatient, schema_id)["name"] == PROMPT_REQUEST
        assert server.asked.count(f"/schemas/ids/{schema_id}") == 1


def test_a_response_that_never_finishes_times_out(
    server: AnyRegistry, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWERED_WITHIN_S", 0.5)
    server.drip(7)
    with pytest.raises(
        SchemaUnavailableError, match=r"schema id 7.*had not finished its response after 0.5 s"
    ):
        registry.schema(7)


def test_closing_the_client_ends_its_queries(server: AnyRegistry, impatient: Registry) -> None:
    server.hold(7)
    with pytest.raises(SchemaPendingError):
        impatient.schema(7)
    until(lambda: server.asked, 30, "the registry has received the query")
    impatient.close()
    assert "zimage-registry" not in {thread.name for thread in threading.enumerate()}


def test_one_of_our_schemas_from_a_registry_is_trusted(server: AnyRegistry, registry: Registry) -> None:
    server.put(7, json.dumps(OURS, separators=(",", ":")))
    assert registry.schema(7).parsed is current(PROMPT_REQUEST).parsed
    assert registry.schema(7).cost is None
    server.put(8, OURS | {"fields": [*OURS["fields"], {"name": "more", "type": "int", "default": 0}]})
    assert registry.schema(8).cost is not None


class TestReferences:
    def put(self, server: AnyRegistry) -> dict[str, Any]:
        """Register a later version of ours, in which one type is a schema of its own."""
        style = {"type": "record", "name": "zimage.Style", "fields": [{"name": "of", "type": "zimage.Era"}]}
        era = {"type": "enum", "name": "zimage.Era", "symbols": ["OLD", "NEW"]}
        schema = OURS | {"fields": [*OURS["fields"], {"name": "style", "type": "zimage.Style"}]}
        to_era = {"name": "zimage.Era", "subject": "era", "version": 2}
        to_style = {"name": "zimage.Style", "subject": "style", "version": 1}
        server.put(7, schema, references=[to_style])
        registered = {"subject": "style", "id": 1, "version": 1, "schema": json.dumps(style)}
        server.answers["/subjects/style/versions/1"] = 200, registered | {"references": [to_era]}
        server.answers["/subjects/era/versions/2"] = (
            200,
            {"subject": "era", "id": 2, "version": 2, "schema": json.dumps(era)},
        )
        named: dict[str, Any] = {}
        for each in (era, style):
            fastavro.parse_schema(each, named)
        parsed: dict[str, Any] = fastavro.parse_schema(schema, named)  # type: ignore[assignment]
        return parsed

    def test_are_followed(self, server: AnyRegistry, registry: Registry) -> None:
        out = io.BytesIO()
        request = {"request_id": "r", "prompt": "a star", "style": {"of": "NEW"}}
        fastavro.schemaless_writer(out, self.put(server), request)
        decoded = Codec(registry).decode_request(b"\x00\x00\x00\x00\x07" + out.getvalue())
        assert decoded == PromptRequest(prompt="a star", request_id="r")

    def test_missing_ones_are_named(self, server: AnyRegistry, registry: Registry) -> None:
        self.put(server)
        del server.answers["/subjects/era/versions/2"]
        with pytest.raises(UnknownSchemaError, match="version 2 of subject era, to which schema id 7 refers"):
            registry.schema(7)

    def test_that_get_a_malformed_answer_are_queried_again(
        self, server: AnyRegistry, registry: Registry, clock: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.put(server)
        with monkeypatch.context() as patch:

            async def nothing(*_: Any) -> None:
                """What another version of the client may return for a malformed answer."""

            patch.setattr(registry._client, "get_version", nothing)
            with pytest.raises(UnknownSchemaError, match="the registry's response for schema id 7"):
                registry.schema(7)
        clock[0] += 60.0
        assert registry.schema(7).parsed["name"] == PROMPT_REQUEST

    def test_cycles_end(self, server: AnyRegistry, registry: Registry) -> None:
        circle = [{"name": "a", "subject": "a", "version": 1}]
        server.put(7, OURS, references=circle)
        registered = {"subject": "a", "id": 1, "version": 1, "schema": '"a"', "references": circle}
        server.answers["/subjects/a/versions/1"] = 200, registered
        with pytest.raises(UnknownSchemaError, match="not an Avro schema"):
            registry.schema(7)

    def test_too_many_are_refused(self, server: AnyRegistry, registry: Registry) -> None:
        def to(number: int) -> list[dict[str, Any]]:
            return [{"name": f"n{number}", "subject": f"s{number}", "version": 1}]

        server.put(7, OURS, references=to(0))
        for number in range(40):
            registered = {"subject": "s", "id": 1, "version": 1, "schema": '"int"'}
            path = f"/subjects/s{number}/versions/1"
            server.answers[path] = 200, registered | {"references": to(number + 1)}
        with pytest.raises(RefusedSchemaError, match="refers to more than 32 schemas"):
            registry.schema(7)
