"""Events on the wire: they are read as written, in older and newer versions too, and garbage is refused."""

from __future__ import annotations

import copy
import io
import json
from datetime import UTC, datetime
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from fastavro.utils import generate_one
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.errors import UnknownSchemaError, WireError
from zimage_stream.events import schemas
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import (
    Failure,
    ImageResult,
    Source,
    Status,
    StoredImage,
    Timing,
)
from zimage_stream.events.progress import Progress, ProgressStage
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.schemas import IMAGE_RESULT, PROMPT_REQUEST, current, published

longs = st.integers(-(2**63), 2**63 - 1)
ints = st.integers(-(2**31), 2**31 - 1)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# The wire format has a resolution of milliseconds.
times = st.integers(0, 4_000_000_000_000).map(lambda ms: datetime.fromtimestamp(ms // 1000, UTC))
doubles = st.floats(allow_nan=False)

requests = st.builds(
    PromptRequest,
    prompt=words,
    request_id=words,
    tenant=words,
    width=ints,
    height=ints,
    seed=st.none() | longs,
    steps=ints,
    guidance_scale=doubles,
    format=words,
    quality=st.none() | ints,
    priority=ints,
    expires_at=st.none() | times,
    batch_id=st.none() | words,
    created_at=st.none() | times,
    attributes=st.dictionaries(words, words, max_size=5),
    previews=ints,
)
results = st.builds(
    ImageResult,
    request_id=words,
    status=st.sampled_from(Status),
    source=st.builds(Source, topic=words, partition=ints, offset=longs),
    requested_at=times,
    completed_at=times,
    tenant=words,
    batch_id=st.none() | words,
    attributes=st.dictionaries(words, words, max_size=5),
    attempts=ints,
    image=st.none()
    | st.builds(
        StoredImage,
        uri=words,
        url=st.none() | words,
        bucket=words,
        key=words,
        content_type=words,
        width=ints,
        height=ints,
        size_bytes=longs,
        sha256=words,
        seed=longs,
        steps=ints,
        guidance_scale=doubles,
    ),
    error=st.none() | st.builds(Failure, code=words, message=words, retriable=st.booleans()),
    timing=st.builds(Timing, total_ms=st.none() | doubles),
    model=words,
    model_revision=words,
    worker=words,
    started_at=st.none() | times,
)
sources = st.builds(Source, topic=words, partition=ints, offset=longs)
cancellations = st.builds(
    Cancellation,
    request_id=words,
    tenant=words,
    source=sources,
    reason=st.none() | words,
    requested_at=times,
)
progresses = st.builds(
    Progress,
    request_id=words,
    tenant=words,
    batch_id=st.none() | words,
    source=sources,
    stage=st.sampled_from(ProgressStage),
    step=ints,
    steps=ints,
    worker=words,
    at=times,
    preview=st.none() | st.binary(max_size=50),
)


@given(cancellations)
def test_a_cancellation_is_read_as_it_was_written(cancellation: Cancellation) -> None:
    value = Codec().encode_cancellation(cancellation, "cancellations")
    assert Codec().decode_cancellation(value) == cancellation


@given(progresses)
def test_progress_is_read_as_it_was_written(progress: Progress) -> None:
    assert Codec().decode_progress(Codec().encode_progress(progress, "progress")) == progress


codec = Codec()


class TestRoundTrip:
    @given(requests)
    def test_a_request_is_read_as_it_was_written(self, request: PromptRequest) -> None:
        assert codec.decode_request(codec.encode_request(request, "t")) == request

    @given(results)
    def test_a_result_is_read_as_it_was_written(self, result: ImageResult) -> None:
        assert codec.decode_result(codec.encode_result(result, "t")) == result

    def test_every_field_of_a_schema_is_a_field_of_its_class_and_has_a_doc(self) -> None:
        for name, event in ((PROMPT_REQUEST, PromptRequest), (IMAGE_RESULT, ImageResult)):
            schema = json.loads(current(name).text)
            assert {field["name"] for field in schema["fields"]} == set(event.__dataclass_fields__)
            assert all(field["doc"] for field in schema["fields"])


class TestFraming:
    def test_is_single_object_encoding_without_a_registry(self) -> None:
        data = codec.encode_request(PromptRequest(prompt="p"), "t")
        assert data[:2] == b"\xc3\x01"
        assert data[2:10] == current(PROMPT_REQUEST).fingerprint

    def test_fingerprints_agree_with_the_specification(self) -> None:
        # What Java's SchemaNormalization computes for the schema "null", as bytes on the wire.
        assert fingerprint('"null"', "CRC-64-AVRO") == "8a8f25cce724dd63"

    @given(st.binary(max_size=60))
    def test_random_bytes_raise_only_wire_errors(self, data: bytes) -> None:
        with pytest.raises(WireError):
            codec.decode_request(data)

    @given(requests, st.data())
    def test_a_damaged_record_is_either_read_or_refused(
        self, request: PromptRequest, data: st.DataObject
    ) -> None:
        raw = bytearray(codec.encode_request(request, "t"))
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(raw)))
        try:
            decoded = codec.decode_request(bytes(raw[:cut]))
        except WireError:
            return
        assert isinstance(decoded, PromptRequest)

    @pytest.mark.parametrize("length", [2**20, 2**40, 2**62])
    def test_a_huge_length_allocates_no_memory(self, length: int) -> None:
        zigzag = length << 1
        prefix = bytearray()
        while zigzag > 0x7F:
            prefix.append(zigzag & 0x7F | 0x80)
            zigzag >>= 7
        prefix.append(zigzag)
        with pytest.raises(WireError):
            codec.decode_request(b"\xc3\x01" + current(PROMPT_REQUEST).fingerprint + bytes(prefix) + b"abc")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (None, "no value"),
            (b"", "is empty"),
            (b'{"prompt": "p"}', "neither Confluent framing"),
            (b"\xc3\x01\x00", "within its schema's fingerprint"),
            (b"\x00\x00", "within its schema's id"),
        ],
    )
    def test_the_message_states_the_problem(self, data: bytes | None, words: str) -> None:
        with pytest.raises(WireError, match=words):
            codec.decode_request(data)

    def test_bytes_after_an_event_are_refused(self) -> None:
        with pytest.raises(WireError, match="2 extra bytes follow"):
            codec.decode_request(codec.encode_request(PromptRequest(prompt="p"), "t") + b"xy")

    def test_an_event_of_another_type_is_named(self) -> None:
        data = codec.encode_request(PromptRequest(prompt="p"), "t")
        with pytest.raises(WireError, match=r"holds zimage\.PromptRequest, not zimage\.ImageResult"):
            codec.decode_result(data)

    def test_an_unknown_fingerprint_and_an_id_without_a_registry_are_unknown_schemas(self) -> None:
        with pytest.raises(UnknownSchemaError, match="fingerprint 0000000000000000"):
            codec.decode_request(b"\xc3\x01" + bytes(8) + b"x")
        with pytest.raises(UnknownSchemaError, match="schema id 7, but no registry is configured"):
            codec.decode_request(b"\x00\x00\x00\x00\x07x")


def as_written_by(name: str, change: Any, record: dict[str, Any]) -> tuple[Any, bytes]:
    """An event written with a changed schema: the loaded schema, and the framed bytes."""
    raw = json.loads(current(name).text)
    change(raw)
    parsed = fastavro.parse_schema(copy.deepcopy(raw))
    mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO"))
    out = io.BytesIO()
    fastavro.schemaless_writer(out, parsed, record)
    schema = schemas.Schema(name, 99, json.dumps(raw), parsed, mark)
    return schema, b"\xc3\x01" + mark + out.getvalue()


def schema_example(schema: schemas.Schema) -> bytes:
    """An event of a schema, without its frame. Every field has a value of its type."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema.parsed, generate_one(schema.parsed))
    return out.getvalue()


class TestVersions:
    def test_all_published_schemas_are_found_by_their_fingerprints(self) -> None:
        for versions in published().values():
            assert [schema.version for schema in versions] == list(range(1, len(versions) + 1))

    @pytest.mark.parametrize("name", sorted(published()))
    def test_every_version_reads_what_any_other_wrote(self, name: str) -> None:
        """FULL_TRANSITIVE, as the registry demands it: a new field has a default, and none is lost."""
        for writer in published()[name]:
            written = schema_example(writer)
            for reader in published()[name]:
                read: Any = fastavro.schemaless_reader(io.BytesIO(written), writer.parsed, reader.parsed)
                own = {field["name"] for field in json.loads(writer.text)["fields"]}
                for field in json.loads(reader.text)["fields"]:
                    if field["name"] not in own:
                        assert read[field["name"]] == field["default"]

    def test_a_request_of_the_first_version_asks_for_no_previews(self) -> None:
        first = published()[PROMPT_REQUEST][0]
        out = io.BytesIO()
        fastavro.schemaless_writer(out, first.parsed, {"request_id": "a", "prompt": "p", "priority": 3})
        read = codec.decode_request(b"\xc3\x01" + first.fingerprint + out.getvalue())
        assert read == PromptRequest(request_id="a", prompt="p", priority=3, previews=0)

    def test_a_reader_of_the_first_version_reads_a_request_for_previews(self) -> None:
        first = published()[PROMPT_REQUEST][0]
        data = codec.encode_request(PromptRequest(request_id="a", prompt="p", priority=3, previews=2), "t")
        body = io.BytesIO(data[10:])
        read: Any = fastavro.schemaless_reader(body, current(PROMPT_REQUEST).parsed, first.parsed)
        assert (read["request_id"], read["prompt"], read["priority"]) == ("a", "p", 3)
        assert "previews" not in read

    def test_an_older_request_is_read_with_the_current_defaults(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def older(raw: dict[str, Any]) -> None:
            raw["fields"] = [f for f in raw["fields"] if f["name"] in ("request_id", "prompt", "width")]

        schema, data = as_written_by(PROMPT_REQUEST, older, {"request_id": "a", "prompt": "p", "width": 64})
        monkeypatch.setitem(schemas.by_fingerprint(), schema.fingerprint, schema)
        assert codec.decode_request(data) == PromptRequest(request_id="a", prompt="p", width=64)

    def test_a_newer_request_is_read_without_its_new_fields(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def newer(raw: dict[str, Any]) -> None:
            raw["fields"].append({"name": "mood", "type": "string", "default": ""})

        schema, data = as_written_by(
            PROMPT_REQUEST, newer, {"request_id": "a", "prompt": "p", "mood": "blue"}
        )
        monkeypatch.setitem(schemas.by_fingerprint(), schema.fingerprint, schema)
        assert codec.decode_request(data) == PromptRequest(request_id="a", prompt="p")

    def test_a_status_added_later_is_read_as_unknown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def newer(raw: dict[str, Any]) -> None:
            (status,) = [f for f in raw["fields"] if f["name"] == "status"]
            status["type"]["symbols"].append("POSTPONED")

        moment = datetime(2026, 1, 1, tzinfo=UTC)
        source = {"topic": "t", "partition": 0, "offset": 0}
        record = {"request_id": "a", "status": "POSTPONED", "source": source}
        schema, data = as_written_by(
            IMAGE_RESULT, newer, {**record, "requested_at": moment, "completed_at": moment}
        )
        monkeypatch.setitem(schemas.by_fingerprint(), schema.fingerprint, schema)
        assert codec.decode_result(data).status is Status.UNKNOWN
