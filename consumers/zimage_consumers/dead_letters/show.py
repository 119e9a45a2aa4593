"""Formats dead letters for a terminal. Pure.

A key, header or id can have megabytes: anything longer than people read is shortened, and marked as such.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.table import Table

from zimage_consumers.dead_letters.choose import LetterGroup
from zimage_consumers.dead_letters.letter import DeadLetter
from zimage_stream.cli.printing import age, plain_fields, table
from zimage_stream.escaping import LINE_CHARACTERS, NAME_CHARACTERS, shortened
from zimage_stream.events.headers import Headers, without_reasons

DUMPED_BYTES = 512
SHOWN_BYTES = 2_000
"""Bytes shown of a key or of a header's value."""
SHOWN_HEADERS = 100
_WIDTH = 16


def groups_table(groups: Mapping[str, LetterGroup], now: datetime) -> Table:
    """A table with a row for each code, the most frequent first."""
    shown = table("CODE", ">COUNT", ">REPLAYED", ">OLDEST", ">NEWEST", "THE NEWEST ONE SAYS")
    for code, group in sorted(groups.items(), key=lambda pair: -pair[1].count):
        shown.add_row(
            code,
            f"{group.count:,}",
            f"{group.replayed:,}",
            age(now - group.oldest),
            age(now - group.newest),
            group.example.message,
        )
    return shown


def id_of(letter: DeadLetter) -> str:
    """The letter's request id, shortened to fit a line."""
    return shortened(letter.request_id or "-", NAME_CHARACTERS)


def line_of(letter: DeadLetter, now: datetime, *, replayed: bool) -> str:
    """One line with position, age, code, id and reason."""
    mark = (" (replayed)" if replayed else "") + (" (cut)" if letter.cut else "")
    return (
        f"{letter.place!s:>8}  {age(now - letter.at):>5}  {shortened(letter.code, NAME_CHARACTERS):<17} "
        f"{id_of(letter)}{mark}  {shortened(letter.message)}"
    )


def details(letter: DeadLetter, now: datetime, *, replayed: bool) -> Iterator[str]:
    """Lines with everything about a letter: why it failed, its request, its headers and its bytes.

    Where anything is shortened, the last line tells how to get all of it.
    """
    shortener = _Shortener()
    said = {
        "dead letter": str(letter.place),
        "died": f"{letter.at:%Y-%m-%d %H:%M:%S} UTC, {age(now - letter.at)} ago",
        "code": letter.code,
        "message": letter.message,
        "error": letter.header("__connect.errors.exception.class.name") or "",
        "record": letter.source,
        "worker": letter.header("zimage.worker") or "",
        "attempts": letter.header("zimage.attempts") or "",
        "replayed": "yes" if replayed else "no",
        "replays": f"{letter.replays} before this death",
    }
    yield from (f"{name:<12} {shortener.text(value)}".rstrip() for name, value in said.items())
    yield ""
    if letter.request is None:
        yield f"request      it cannot be read: {shortener.text(letter.unreadable)}"
    else:
        yield "request"
        fields = plain_fields(letter.request).items()
        yield from _indented(
            [(name, "" if value is None else shortener.text(str(value))) for name, value in fields]
        )
    yield ""
    yield "headers"
    yield from _headers(without_reasons(letter.headers), shortener)
    yield ""
    if letter.cut:
        yield "left out     " + ", ".join(f"{name} {shortener.text(cut)}" for name, cut in letter.cut.items())
        yield f"             all of it, while it is kept, is at {shortener.text(letter.source)}"
        yield ""
    yield f"key          {shortener.data(letter.key)}"
    if letter.value is None:
        yield "value        none (a null)"
    else:
        yield f"value        {len(letter.value):,} bytes"
        yield from dump(letter.value[:DUMPED_BYTES])
        if len(letter.value) > DUMPED_BYTES:
            yield f"  … {len(letter.value) - DUMPED_BYTES:,} more; all of them: --raw"
    if shortener.shortened:
        yield ""
        yield (
            f"shortened    all of it: zimage dead-letters show {letter.place} --json, or "
            f"zimage dead-letters export --at {letter.place}"
        )


class _Shortener:
    """Shortens text, and remembers whether it had to."""

    def __init__(self) -> None:
        self.shortened = False

    def text(self, text: str | None, limit: int = LINE_CHARACTERS) -> str:
        text = text or ""
        short = shortened(text, limit)
        self.shortened |= short != text
        return short

    def data(self, value: bytes | None) -> str:
        """A key or a header's value: as text if it is text, with its size if it is shortened."""
        if value is None:
            return "none"
        some = value[:SHOWN_BYTES]
        try:
            # A character that the cut goes through is left out.
            text = codecs.utf_8_decode(some, "strict", len(some) == len(value))[0]
        except UnicodeDecodeError:
            shown = f"{some.hex(' ')} (hexadecimal)"
        else:
            shown = text if text.isprintable() else repr(text)
        if len(some) == len(value):
            return shown
        self.shortened = True
        return f"{shown}… ({len(value):,} bytes)"


def _headers(headers: Headers, shortener: _Shortener) -> Iterator[str]:
    some = headers[:SHOWN_HEADERS]
    yield from _indented(
        [(shortener.text(name, NAME_CHARACTERS), shortener.data(value)) for name, value in some]
    )
    if len(some) < len(headers):
        shortener.shortened = True
        yield f"  … {len(headers) - len(some):,} more"


def dump(data: bytes) -> Iterator[str]:
    """Lines of 16 bytes in hexadecimal, followed by their characters."""
    for start in range(0, len(data), _WIDTH):
        row = data[start : start + _WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"  {start:06x}  {row.hex(' '):<{3 * _WIDTH - 1}}  {text}"


def _indented(fields: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in fields), default=0)
    return (f"  {name:<{width}}  {value}".rstrip() for name, value in fields)
