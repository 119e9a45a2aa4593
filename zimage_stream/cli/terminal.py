"""Output of the commands; this is the only place where it is escaped."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from zimage_stream.escaping import escaped, escaped_lines, shortened, shortened_lines
from zimage_stream.masking import masked


def prepare_streams() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_line(text: str = "", *, err: bool = False) -> None:
    """Print one line to stdout or stderr; a line on stderr is for people, and shortened."""
    if err:
        _write(escaped(shortened(text)), sys.stderr)
    else:
        _write(escaped(text), sys.stdout)


def print_error(text: str) -> None:
    """Print an error, possibly of several lines, to stderr, shortened and with passwords in URLs masked."""
    _write(escaped_lines(shortened_lines(masked(text))), sys.stderr)


def _write(text: str, stream: TextIO) -> None:
    stream.write(f"{text}\n")
    stream.flush()
