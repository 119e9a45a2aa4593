"""Text from anybody, made fit to be shown: on a terminal, in a log, in a page.

A prompt, an id, a name, a header, an error's message can hold what a terminal obeys (escape sequences set
its title and its clipboard), what begins a new line in a log, and what turns the order of signs around. It
can have megabytes. Lengths are in characters; an escape takes up to six.
"""

from __future__ import annotations

import codecs
import logging
import re
from types import TracebackType
from typing import TextIO

from zimage_stream.masking import masked

_HARMFUL = re.compile(
    # Controls and DEL; line and paragraph separators; bidirectional overrides and isolates; half a sign.
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
NAME_CHARACTERS = 200
"""Of an id, a tenant, a name: more than any has that keeps the rules."""
LINE_CHARACTERS = 2_000
"""Of a message in one line; a prompt that keeps the rules has no more."""
TEXT_CHARACTERS = 16_000
"""Of a text in several lines, such as a traceback."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str, keep: str = "") -> str:
    r"""The text with what is harmful to show written as an escape: ``\n``, ``\u001b``. Pure.

    The notation is JSON's, so that JSON stays the same JSON: there such signs are in texts only.

    Args:
        keep: harmful signs that stay, such as the line breaks of a text in several lines.
    """
    return _HARMFUL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(sign: str) -> str:
    return _SHORT.get(sign) or f"\\u{ord(sign):04x}"


def escaped_lines(text: str) -> str:
    """The same of a text in several lines: all but the first are indented, so that none looks like ours."""
    return escaped(text, keep="\n").replace("\n", "\n  ")


def shortened(text: str, limit: int = LINE_CHARACTERS) -> str:
    """The text in so many characters at most, cut in its middle: its end often says what to do. Pure.

    Args:
        limit: with what is said of the whole length, for which there is room in 40.
    """
    if len(text) <= limit:
        return text
    size = f" ({len(text)} characters)"
    # First, since half a URL would not be taken for one.
    text = masked(text)
    kept = max(1, (limit - len(size) - 1) // 2)
    return f"{text[:kept]}…{text[-kept:]}{size}"


def shortened_lines(text: str) -> str:
    """The same of a text in several lines: each of them, and all together."""
    return shortened("\n".join(map(shortened, text.split("\n"))), TEXT_CHARACTERS)


class LineFormatter(logging.Formatter):
    """A log line is one line and bounded, whatever is in its message; a traceback follows, indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escaped(shortened(masked(super().formatMessage(record))))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        return "  " + escaped_lines(shortened_lines(masked(super().formatException(ei))))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return "  " + escaped_lines(shortened_lines(masked(super().formatStack(stack_info))))


def is_utf8(stream: TextIO) -> bool:
    """Whether the stream can carry every text."""
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
