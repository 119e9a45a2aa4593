"""Untrusted text is displayed recognizably and has no effect on a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HARMFUL, HOSTILE
from zimage_stream.cli.printing import as_json
from zimage_stream.escaping import LINE_CHARACTERS, LineFormatter, escaped, escaped_lines, shortened

anything = st.text(st.characters()) | st.text(st.sampled_from(HOSTILE + "\ud800\u2029\u2069\\é狐😀"))


@given(anything)
def test_no_harmful_character_is_left(text: str) -> None:
    assert HARMFUL.search(escaped(text)) is None
    assert "\n" not in escaped(text)
    assert HARMFUL.search(escaped_lines(text)) is None


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_harmless_text_is_unchanged(text: str) -> None:
    assert escaped(text) == text


@pytest.mark.parametrize("text", ["👩‍💻", "می‌خواهم", "עברית\u200f", "\N{SOFT HYPHEN}", "C:\\new"])
def test_joiners_combining_marks_and_backslashes_are_kept(text: str) -> None:
    assert escaped(text) == text


def test_an_escape_identifies_its_character() -> None:
    assert escaped("a\x1b\n\t\x9b\u202e\ud800") == "a\\u001b\\n\\t\\u009b\\u202e\\ud800"
    assert escaped_lines("one\ntwo\x1b") == "one\n  two\\u001b"


@given(st.dictionaries(anything, anything), st.booleans())
def test_json_keeps_its_meaning_in_one_harmless_line(record: dict[str, str], ascii_only: bool) -> None:
    line = as_json(record, ascii_only=ascii_only)
    assert HARMFUL.search(line) is None
    assert "\n" not in line
    assert line.isascii() or not ascii_only
    assert json.loads(line) == record


def test_a_log_line_is_one_line_and_its_traceback_is_indented() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "it failed: %s", (HOSTILE,), sys.exc_info())
    first, *others = formatter.format(record).split("\n")
    assert first == f"ERROR it failed: {escaped(HOSTILE)}"
    assert others
    assert all(line.startswith("  ") and HARMFUL.search(line) is None for line in others)


@given(anything, st.integers(40, 300), st.integers(1, 100))
def test_long_text_is_cut_in_the_middle(text: str, limit: int, times: int) -> None:
    text *= times
    short = shortened(text, limit)
    assert len(short) <= limit
    if short != text:
        assert len(text) > limit
        head, _, rest = short.partition("…")
        assert short.endswith(f" ({len(text)} characters)")
        if "…" not in text:
            tail = rest.removesuffix(f" ({len(text)} characters)")
            assert text.startswith(head)
            assert text.endswith(tail)
            assert len(head) == len(tail) > 0


@given(st.integers(0, 100), st.integers(0, 100), st.integers(40, 160))
def test_a_password_is_masked_wherever_the_text_is_cut(before: int, after: int, limit: int) -> None:
    text = f"{'x' * before} no answer from http://user:hunter2@registry {'x' * after}"
    short = shortened(text, limit)
    assert short == text or not re.search("user|hunt|ter2", short)


def test_a_log_line_and_its_traceback_are_shortened() -> None:
    formatter = LineFormatter("%(levelname)s %(message)s")
    try:
        raise ValueError("x" * (4 << 20) + "\n" * (1 << 20))
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", ("y" * (4 << 20),), sys.exc_info())
    first, *others = formatter.format(record).split("\n")
    assert len(first) <= LINE_CHARACTERS
    assert others[0].endswith("Traceback (most recent call last):")
    assert sum(map(len, others)) < 100_000
