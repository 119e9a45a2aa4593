"""Dead letters as values: positions, what a replay sends, and how bytes are shown."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.dead_letters.choose import LetterGroup
from zimage_consumers.dead_letters.letter import DeadLetter, LetterPosition
from zimage_consumers.dead_letters.show import details, dump, groups_table, line_of
from zimage_stream.cli.printing import as_json, console
from zimage_stream.events.headers import (
    REASONS,
    Headers,
    dead_letter_headers,
    replay_headers,
    replays_of,
    without_reasons,
)
from zimage_stream.events.prompt_request import PromptRequest

MUCH = 2 << 20
AT = datetime(2026, 1, 1, tzinfo=UTC)

headers = st.lists(
    st.tuples(st.sampled_from(["a", "traceparent", "zimage.mine", *REASONS[:2]]), st.binary() | st.none())
)


@given(st.integers(0, 2**31), st.integers(0, 2**63 - 1))
def test_a_position_is_parsed_as_it_is_written(partition: int, offset: int) -> None:
    assert LetterPosition.parse(str(LetterPosition(partition, offset))) == (partition, offset)


@pytest.mark.parametrize("text", ["", "1", "1:", ":1", "a:b", "-1:2", "1:2:3", "١:٢", " 1:2"])
def test_invalid_positions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="PARTITION:OFFSET"):
        LetterPosition.parse(text)


@given(headers, st.integers(1, 5))
def test_repeated_failures_and_replays_keep_the_senders_headers(
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
def test_an_invalid_count_of_replays_is_zero(value: bytes) -> None:
    assert replays_of([("zimage.replays", value)]) >= 0


@given(st.binary(max_size=200))
def test_every_byte_is_shown_within_a_terminals_width(data: bytes) -> None:
    lines = list(dump(data))
    assert all(len(line) <= 80 for line in lines)
    assert bytes.fromhex("".join(line[10:57] for line in lines)) == data


def letter(
    key: bytes | None = b"k",
    value: bytes | None = b"v",
    headers: Headers | None = None,
    request: PromptRequest | None = None,
) -> DeadLetter:
    unreadable = None if request else "it is no Avro"
    return DeadLetter(LetterPosition(0, 17), key, value, headers or [], AT, request, unreadable)


def shown(one: DeadLetter) -> str:
    return "\n".join(details(one, AT, replayed=False))


SHORTENED = (
    "shortened    all of it: zimage dead-letters show 0:17 --json, or zimage dead-letters export --at 0:17"
)


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (letter(key=b"k" * MUCH), f"… ({MUCH:,} bytes)"),
        (letter(key=b"\xff" * MUCH), f"ff ff (hexadecimal)… ({MUCH:,} bytes)"),
        (letter(key="长".encode() * MUCH), f"长长… ({3 * MUCH:,} bytes)"),
        (letter(headers=[("mine", b"x" * MUCH)]), f"… ({MUCH:,} bytes)"),
        (letter(headers=[("x" * MUCH, b"mine")]), f"({MUCH} characters)"),
        (letter(headers=[("mine", b"x")] * 100_000), "… 99,900 more"),
        *(
            (letter(headers=[(name, b"x" * MUCH)]), " characters)")
            for name in (*REASONS, "zimage.value-sha256", "zimage.key-bytes")
            if name != "zimage.time"
        ),
        (letter(request=PromptRequest(prompt="x" * MUCH)), f"({MUCH} characters)"),
        (letter(request=PromptRequest(prompt="a", request_id="x" * MUCH)), f"({MUCH} characters)"),
        (letter(request=PromptRequest(prompt="a", attributes={"x" * MUCH: "y"})), " characters)"),
    ],
    ids=lambda each: "" if isinstance(each, DeadLetter) else each[:40],
)
def test_overlong_values_are_shortened(one: DeadLetter, says: str) -> None:
    text = shown(one)
    assert len(text) < 20_000
    assert says in text
    assert text.endswith(SHORTENED)
    line = line_of(one, AT, replayed=False)
    assert len(line) < 3_000
    with console(width=200).capture() as printed:
        console(width=200).print(groups_table({one.code: LetterGroup.of(one)}, AT))
    assert len(printed.get()) < 10_000


def test_values_of_readable_length_are_shown_whole() -> None:
    request = PromptRequest(prompt="长" * 2_000, request_id="r" * 128, attributes={"a": "b" * 1_000})
    one = letter(b"k" * 128, b"v" * 2_000, [("mine", b"x" * 1_000), ("none", None)] * 50, request)
    text = shown(one)
    assert "shortened" not in text
    for said in ("长" * 2_000, "r" * 128, "k" * 128, "x" * 1_000, "b" * 1_000):
        assert said in text
    assert "r" * 128 in line_of(one, AT, replayed=False)


def test_json_contains_everything() -> None:
    one = letter(b"k" * MUCH, b"v" * MUCH, [("x" * MUCH, b"y" * MUCH)])
    assert len(as_json(one.as_dict())) > 4 * MUCH
