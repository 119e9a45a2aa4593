"""Every decoder returns a value or a documented error for any bytes, in bounded time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS

CORPUS = Path(__file__).parent / "corpus"


@st.composite
def mutated(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A valid input with a few bytes changed, removed or inserted."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 4))
        data[at : at + length] = draw(st.binary(max_size=10))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
@given(st.data())
@settings(max_examples=400)
def test_any_bytes_are_decoded_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(st.binary(max_size=300) | mutated(SEEDS[name])))


@pytest.mark.parametrize("name", TARGETS)
def test_the_stored_corpus_is_decoded_or_refused(name: str) -> None:
    for file in sorted((CORPUS / name).glob("*")):
        TARGETS[name](file.read_bytes())
