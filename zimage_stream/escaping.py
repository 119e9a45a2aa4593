"""Escaping and shortening of untrusted text for display on a terminal, in a log or on a page.

A prompt, id, name, header or error message can contain terminal escape sequences (which can set the title and
the clipboard), line breaks that forge log lines, and characters that reverse the reading direction. It can be
megabytes long. Lengths are in characters; an escape takes up to six.
"""

from __future__ import annotations

import codecs
import logging
import re
from types import TracebackType
from typing import TextIO

from zimage_stream.masking import masked

_HARMFUL = re.compile(
    # Controls and DEL; line and paragraph separators; bidirectional overrides and isolates; lone surrogates.
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
NAME_CHARACTERS = 200
"""Maximum length of a displayed id, tenant or name, in characters; valid ones are shorter."""
LINE_CHARACTERS = 2_000
"""Maximum length of a displayed line, in characters; a valid prompt is no longer."""
TEXT_CHARACTERS = 16_000
"""Maximum length of a displayed text of several lines, such as a traceback, in characters."""
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: str, keep: str = "") -> str:
    r"""Replace characters that are harmful to display by escapes such as ``\n`` and ``\u001b``. Pure.

    The escapes are those of JSON, so escaping a JSON document does not change its meaning: there such
    characters occur only within strings.

    Args:
        keep: harmful characters that are kept, such as the line breaks of a text of several lines.
    """
    return _HARMFUL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return _SHORT.get(character) or f"\\u{ord(character):04x}"


def escaped_lines(text: str) -> str:
    """Escape a text of several lines; all but the first are indented, so that none looks like a log line."""
    return escaped(text, keep="\n").replace("\n", "\n  ")


def shortened(text: str, limit: int = LINE_CHARACTERS) -> str:
    """Shorten a text in the middle, since the end of a message often states the remedy. Pure.

    Args:
        limit: maximum length of the outcome, in characters, including the note on the full length; at
            least 40.
    """
    if len(text) <= limit:
        return text
    size = f" ({len(text)} characters)"
    # Mask first, because a URL that is cut in half is no longer recognised as one.
    text = masked(text)
    kept = max(1, (limit - len(size) - 1) // 2)
    return f"{text[:kept]}…{text[-kept:]}{size}"


def shortened_lines(text: str) -> str:
    """Shorten a text of several lines: each line, and the whole text."""
    return shortened("\n".join(map(shortened, text.split("\n"))), TEXT_CHARACTERS)


class LineFormatter(logging.Formatter):
    """Formats a log record as one line of bounded length; a traceback follows, indented."""

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
    """Whether the stream's encoding is UTF-8."""
    return codecs.lookup(stream.encoding or "ascii").name == "utf-8"
