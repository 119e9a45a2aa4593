"""Where the commands say what they say: all of it is escaped here, and only here."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from zimage_stream.escaping import escaped, escaped_lines, shortened, shortened_lines
from zimage_stream.masking import masked


def prepare_streams() -> None:
    """What the encoding of stdout or stderr has no sign for becomes an escape from now on, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "", *, err: bool = False) -> None:
    """Print one line to stdout or stderr. What goes to stderr is for people, and bounded."""
    if err:
        _write(escaped(shortened(text)), sys.stderr)
    else:
        _write(escaped(text), sys.stdout)


def complain(text: str) -> None:
    """Print an error, which may have several lines, to stderr; bounded, without passwords of URLs in it."""
    _write(escaped_lines(shortened_lines(masked(text))), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
    stream.flush()
