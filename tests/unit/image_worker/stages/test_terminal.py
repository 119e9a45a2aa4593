"""The records produced for a job that ended: they always fit, and state what was cut."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.group.publish import OutgoingRecord
from zimage_consumers.image_worker.stages.terminal import (
    HEAD_BYTES,
    STUB_BYTES,
    Identity,
    build_dead_letter,
    records_of,
)
from zimage_consumers.image_worker.window.jobs import Job, Resolution
from zimage_stream.errors import RequestError, WireError
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import CUTS, MAX_HEADERS, REASONS, Header, size_of, without_reasons
from zimage_stream.events.image_result import Code
from zimage_stream.kafka.clients import MAX_MESSAGE_BYTES
from zimage_stream.settings import TopicSettings

AT = datetime(2026, 1, 1, tzinfo=UTC)


def dead(one: Job) -> OutgoingRecord:
    """The dead letter of a record that could not be decoded."""
    one.request = None
    resolution = Resolution(one, code=Code.UNDECODABLE, cause=WireError("it is no Avro " * 1_000))
    (letter,) = records_of(resolution, TopicSettings(), Codec(), Identity("m", "", "slot" * 90), AT)
    return letter


def holding(value: bytes | None, key: bytes | None = b"k", headers: tuple[Header, ...] = ()) -> Job:
    one = job()
    one.record = replace(one.record, key=key, value=value, headers=headers)
    return one


def cuts(letter: OutgoingRecord) -> dict[str, bytes | None]:
    return {name: value for name, value in letter.headers if name in CUTS}


pieces = st.builds(
    lambda unit, times: unit * times, st.binary(min_size=1, max_size=3), st.integers(0, 2 << 20)
)
names = st.sampled_from(["a", "mine", "traceparent", "名字", "zimage.value-bytes", "zimage.code", ""])


@given(
    st.none() | pieces,
    st.none() | pieces,
    st.lists(st.tuples(names, st.none() | pieces), max_size=4).map(tuple),
    st.booleans(),
)
def test_a_dead_letter_fits_and_states_what_was_cut(
    value: bytes | None, key: bytes | None, headers: tuple[Header, ...], cut: bool
) -> None:
    one = holding(value, key, headers)
    one.cut = cut
    letter = dead(one)
    assert letter.size < (STUB_BYTES if cut else MAX_MESSAGE_BYTES)
    said = cuts(letter)
    own = without_reasons(headers)
    kept = without_reasons(letter.headers)
    assert [name for name, _ in letter.headers if name in REASONS] == list(REASONS)
    assert ("zimage.value-bytes" in said) == (letter.value != value)
    if value is not None and letter.value != value:
        assert said["zimage.value-bytes"] == str(len(value)).encode()
        assert said["zimage.value-sha256"] == sha256(value).hexdigest().encode()
        assert letter.value is not None
        assert value.startswith(letter.value)
    assert said.get("zimage.key-bytes") == (None if letter.key == key else str(len(key or b"")).encode())
    left_out = len(own) - len(kept)
    assert said.get("zimage.headers-left-out") == (str(left_out).encode() if left_out else None)
    assert all(header in own for header in kept)


def test_a_record_that_fits_is_kept_byte_for_byte() -> None:
    headers: tuple[Header, ...] = (("mine", b"\xff\x00"), ("mine", b"twice"), ("none", None))
    value = b"\xff" * (MAX_MESSAGE_BYTES - (16 << 10))
    letter = dead(holding(value, b"\xff\x00", headers))
    assert (letter.key, letter.value) == (b"\xff\x00", value)
    assert without_reasons(letter.headers) == list(headers)
    assert cuts(letter) == {}


_REASONS: list[Header] = [(name, b"why") for name in REASONS]
_CUTS_BYTES = 512
"""Bytes that a letter may keep free for stating what was left out."""


@given(
    st.none() | pieces,
    st.none() | pieces,
    st.lists(st.tuples(names, st.none() | pieces), max_size=4).map(tuple),
    st.integers(2 << 10, 5 << 20),
)
def test_nothing_that_would_have_fitted_is_left_out(
    value: bytes | None, key: bytes | None, headers: tuple[Header, ...], limit: int
) -> None:
    record = holding(value, key, headers).record
    letter = build_dead_letter(record, _REASONS, "dead", limit)
    assert letter.size <= limit
    room = limit - size_of(_REASONS) - _CUTS_BYTES
    carried = letter.value or b""
    head = carried if letter.value == value and len(carried) <= HEAD_BYTES else carried[:HEAD_BYTES]
    # First the head of the value, which is all of a small value.
    if value is not None and letter.value != value:
        assert len(value) > min(room, HEAD_BYTES)
        assert len(carried) == min(HEAD_BYTES, room // 2)
    if letter.key != key:
        assert len(key or b"") > room - min(len(head), room)
    left = room - len(letter.key or b"")
    if letter.value != value:
        assert len(value or b"") > left
    left -= len(carried)
    own, kept = without_reasons(headers), without_reasons(letter.headers)
    for header in own:
        if kept and header == kept[0]:
            left -= size_of([kept.pop(0)])
        else:
            assert size_of([header]) > left
    assert kept == []


@given(pieces, pieces, st.integers(0, 3))
def test_a_record_that_fits_exactly_is_kept_whole(value: bytes, key: bytes, spare: int) -> None:
    headers = (("mine", b"x"),)
    needed = len(value) + len(key) + size_of([*headers, *_REASONS]) + spare
    letter = build_dead_letter(holding(value, key, headers).record, _REASONS, "dead", needed)
    assert (letter.key, letter.value, cuts(letter)) == (key, value, {})


@pytest.mark.parametrize("cut", [False, True])
def test_a_large_key_is_kept_where_there_is_room(cut: bool) -> None:
    key = b"k" * (10_000 if cut else (11 << 20) // 10)
    one = holding(b"value", key)
    one.cut = cut
    letter = dead(one)
    assert (letter.key, letter.value, cuts(letter)) == (key, b"value", {})


def test_a_request_takes_precedence_over_a_key_and_a_key_over_the_rest_of_a_value() -> None:
    small, large = b"v" * HEAD_BYTES, b"v" * (3 << 20)
    letter = dead(holding(small, b"k" * MAX_MESSAGE_BYTES))
    assert (letter.key, letter.value) == (None, small)
    letter = dead(holding(large, b"k" * (2 << 20)))
    assert (letter.key, letter.value) == (b"k" * (2 << 20), large[:HEAD_BYTES])


def test_no_more_headers_are_written_than_a_client_can_read() -> None:
    headers = tuple((f"h{number}", b"") for number in range(MAX_HEADERS))
    letter = dead(holding(b"v", headers=headers))
    assert len(letter.headers) <= MAX_HEADERS
    kept = without_reasons(letter.headers)
    assert cuts(letter) == {"zimage.headers-left-out": str(MAX_HEADERS - len(kept)).encode()}


def test_unreadable_headers_are_reported_as_left_out() -> None:
    one = holding(b"v")
    one.record = replace(one.record, headers_lost="a header's name is no UTF-8")
    assert cuts(dead(one)) == {"zimage.headers-left-out": b"all"}


def test_the_message_of_an_error_is_bounded() -> None:
    one, said = job(), "a page: " + "x" * (1 << 20) + ", the end"
    resolution = Resolution(one, code=Code.UNKNOWN_SCHEMA, cause=WireError(said))
    result, letter = records_of(resolution, TopicSettings(), Codec(), Identity("m", "", "slot"), AT)
    error = Codec().decode_result(result.value).error
    assert error is not None
    assert len(error.message) < 2_000
    assert error.message.startswith("a page: x")
    assert error.message.endswith(f", the end ({len(said)} characters)")
    assert dict(letter.headers)["__connect.errors.exception.message"] == error.message.encode()


@pytest.mark.parametrize("field", ["attributes", "tenant", "request_id", "batch_id"])
def test_a_result_fits_however_long_the_fields_of_its_request(field: str) -> None:
    much = "长" * (2 << 20)
    said: Any = {"big": much} if field == "attributes" else much
    one = job(**{field: said})
    trace = (("traceparent", b"0" * 5_000_000), ("traceparent", b"00-a"), ("traceparent", b"00-b"))
    one.record = replace(one.record, headers=trace)
    resolution = Resolution(one, code=Code.INVALID_REQUEST, cause=RequestError(field, "less", much))
    result, letter = records_of(resolution, TopicSettings(), Codec(), Identity("m", "", "slot"), AT)
    assert result.size < MAX_MESSAGE_BYTES
    assert letter.size < MAX_MESSAGE_BYTES
    decoded = Codec().decode_result(result.value)
    assert decoded.source.offset == one.record.offset
    assert decoded.error is not None
    assert decoded.error.message.startswith(f"{field}: got ")
    assert "are cut here" in decoded.error.message
    assert [value for name, value in result.headers if name == "traceparent"] == [b"00-a"]
