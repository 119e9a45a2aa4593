"""Dead letters as values: places, what a replay sends, and how bytes are shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.dead_letters.letter import Place
from zimage_consumers.dead_letters.show import dump
from zimage_stream.events.headers import (
    REASONS,
    dead_letter_headers,
    replay_headers,
    replays_of,
    without_reasons,
)

headers = st.lists(
    st.tuples(st.sampled_from(["a", "traceparent", "zimage.mine", *REASONS[:2]]), st.binary() | st.none())
)


@given(st.integers(0, 2**31), st.integers(0, 2**63 - 1))
def test_a_place_is_read_as_it_is_written(partition: int, offset: int) -> None:
    assert Place.parse(str(Place(partition, offset))) == (partition, offset)


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "a:b", "-1:2", "1:2:3", "١:٢", " 1:2"])
def test_what_is_no_place(text: str) -> None:
    with pytest.raises(ValueError, match="PARTITION:OFFSET"):
        Place.parse(text)


@given(headers, st.integers(1, 5))
def test_dying_and_replaying_in_turn_keeps_the_senders_headers(
    own: list[tuple[str, bytes | None]], rounds: int
) -> None:
    record = list(own)
    for number in range(rounds):
        letter = dead_letter_headers(
            record,
            topic="requests",
            partition=1,
            offset=2,
            exception_class="SomeError",
            message="why",
            code="INVALID_REQUEST",
            attempts=0,
            worker="w",
            at=datetime.now(UTC),
        )
        assert replays_of(letter) == number
        record = replay_headers(letter, topic="dead", partition=0, offset=number)
    kept = without_reasons(own)
    assert record[: len(kept)] == kept
    assert record[len(kept) :] == [
        ("zimage.replays", str(rounds).encode()),
        ("zimage.replay-of", f"dead/0/{rounds - 1}".encode()),
    ]


@given(st.binary(max_size=20))
def test_a_count_that_is_nonsense_is_none(value: bytes) -> None:
    assert replays_of([("zimage.replays", value)]) >= 0


@given(st.binary(max_size=200))
def test_every_byte_is_shown_within_a_terminals_width(data: bytes) -> None:
    lines = list(dump(data))
    assert all(len(line) <= 80 for line in lines)
    assert bytes.fromhex("".join(line[10:57] for line in lines)) == data
