"""Text from anybody is shown as what it is, and does nothing."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HARMFUL, HOSTILE
from zimage_stream.escaping import LineFormatter, escaped, escaped_lines
from zimage_stream.printing import as_json

anything = st.text(st.characters()) | st.text(st.sampled_from(HOSTILE + "\ud800\u2029\u2069\\é狐😀"))


@given(anything)
def test_nothing_harmful_is_left(text: str) -> None:
    assert HARMFUL.search(escaped(text)) is None
    assert "\n" not in escaped(text)
    assert HARMFUL.search(escaped_lines(text)) is None


@given(st.text(st.characters(exclude_categories=["C", "Zl", "Zp"])))
def test_what_harms_nobody_stays_as_it_is(text: str) -> None:
    assert escaped(text) == text


@pytest.mark.parametrize("text", ["👩‍💻", "می‌خواهم", "עברית\u200f", "\N{SOFT HYPHEN}", "C:\\new"])
def test_joiners_marks_and_backslashes_are_text(text: str) -> None:
    assert escaped(text) == text


def test_an_escape_says_which_sign_it_was() -> None:
    assert escaped("a\x1b\n\t\x9b\u202e\ud800") == "a\\u001b\\n\\t\\u009b\\u202e\\ud800"
    assert escaped_lines("one\ntwo\x1b") == "one\n  two\\u001b"


@given(st.dictionaries(anything, anything), st.booleans())
def test_json_says_the_same_and_is_one_harmless_line(record: dict[str, str], ascii_only: bool) -> None:
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
