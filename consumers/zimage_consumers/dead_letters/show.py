"""Dead letters as people read them on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from rich.table import Table

from zimage_consumers.dead_letters.choose import Group
from zimage_consumers.dead_letters.letter import DeadLetter
from zimage_stream.events.headers import without_reasons
from zimage_stream.printing import age, plain_fields, table

DUMPED_BYTES = 512
_WIDTH = 16


def groups_table(groups: Mapping[str, Group], now: datetime) -> Table:
    """A row for each code, the most frequent first."""
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


def line_of(letter: DeadLetter, now: datetime, *, replayed: bool) -> str:
    """Place, age, code, id and reason."""
    mark = (" (replayed)" if replayed else "") + (" (cut)" if letter.cut else "")
    return (
        f"{letter.place!s:>8}  {age(now - letter.at):>5}  {letter.code:<17} "
        f"{letter.request_id or '-'}{mark}  {letter.message}"
    )


def details(letter: DeadLetter, now: datetime, *, replayed: bool) -> Iterator[str]:
    """Everything about it: why it died, what it asked for, its headers and its bytes."""
    yield from _pairs(
        {
            "dead letter": str(letter.place),
            "died": f"{letter.at:%Y-%m-%d %H:%M:%S} UTC, {age(now - letter.at)} ago",
            "code": letter.code,
            "message": letter.message,
            "error": letter.said("__connect.errors.exception.class.name") or "",
            "record": letter.source,
            "worker": letter.said("zimage.worker") or "",
            "attempts": letter.said("zimage.attempts") or "",
            "replayed": "yes" if replayed else "no",
            "replays": f"{letter.replays} before this death",
        }
    )
    yield ""
    if letter.request is None:
        yield f"request      it cannot be read: {letter.unreadable}"
    else:
        yield "request"
        yield from _indented(list(plain_fields(letter.request).items()))
    yield ""
    yield "headers"
    yield from _indented([(name, _header(value)) for name, value in without_reasons(letter.headers)])
    yield ""
    if letter.cut:
        yield "left out     " + ", ".join(f"{name} {said}" for name, said in letter.cut.items())
        yield f"             all of it, while it is kept, lies at {letter.source}"
        yield ""
    yield f"key          {_header(letter.key)}"
    if letter.value is None:
        yield "value        none (a null)"
        return
    yield f"value        {len(letter.value):,} bytes"
    yield from dump(letter.value[:DUMPED_BYTES])
    if len(letter.value) > DUMPED_BYTES:
        yield f"  … {len(letter.value) - DUMPED_BYTES:,} more; all of them: --raw"


def dump(data: bytes) -> Iterator[str]:
    """Bytes in hexadecimal with their characters beside them, 16 to a line."""
    for start in range(0, len(data), _WIDTH):
        row = data[start : start + _WIDTH]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"  {start:06x}  {row.hex(' '):<{3 * _WIDTH - 1}}  {text}"


def _pairs(fields: Mapping[str, str]) -> Iterator[str]:
    return (f"{name:<12} {value}".rstrip() for name, value in fields.items())


def _indented(fields: Sequence[tuple[str, object]]) -> Iterator[str]:
    width = max((len(name) for name, _ in fields), default=0)
    return (f"  {name:<{width}}  {'' if value is None else value}".rstrip() for name, value in fields)


def _header(value: bytes | None) -> str:
    if value is None:
        return "none"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return f"{value.hex(' ')} (hexadecimal)"
    return text if text.isprintable() else repr(text)
