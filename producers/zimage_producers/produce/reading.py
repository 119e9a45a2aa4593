"""Opening of an input file: detects its format, encoding and dialect, and reads its rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Literal

from zimage_producers.produce import encoding as encodings
from zimage_producers.produce.encoding import Encoding
from zimage_producers.produce.json_lines import read_json_lines
from zimage_producers.produce.rows import InputError, Row
from zimage_producers.produce.sheet import read_workbook
from zimage_producers.produce.table import read_table
from zimage_stream.events.texts import FIELDS

Format = Literal["csv", "jsonl", "xlsx"]

_CHUNK = 1 << 16
_ZIP = b"PK\x03\x04"
_SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv", ".tab", ".txt"), "csv"),
    **dict.fromkeys((".xlsx", ".xlsm"), "xlsx"),
}
_OTHERS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook, or one with a password: save it as XLSX without one"),
    (b"\x1f\x8b", "compressed: pass it as zcat FILE | zimage produce --file -"),
    (b"PAR1", "Parquet: save it as CSV or JSON Lines"),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """An opened input.

    Attributes:
        described: how it is read, in words.
        rows: its rows, read lazily.
        file: the open file, whose position shows how much has been read.
        size: its size in bytes, if known.
        attributes: the columns that are not fields of a request.
    """

    described: str
    rows: Iterator[Row]
    file: BinaryIO
    size: int | None
    attributes: tuple[str, ...] = ()


def format_of(path: Path | None, asked: Format | None, head: bytes = b"") -> Format:
    """Determine the format: from the first bytes, the requested format or the file's name, in this order.

    For standard input the default is JSON Lines.

    Args:
        asked: the requested format, if any.
        head: the first bytes of the input.

    Raises:
        InputError: the format is unknown or unsupported, or these sources contradict each other.
    """
    where = path or "the input"
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise InputError(f"{where}: it is {what}")
    if head.startswith(_ZIP):
        if path is None or asked not in (None, "xlsx"):
            raise InputError(f"{where}: it is an Excel workbook: pass it as --file FILE.xlsx")
        return "xlsx"
    found = asked or ("jsonl" if path is None else _SUFFIXES.get(path.suffix.lower()))
    if found is None:
        raise InputError(f"{path}: unknown format; set --input-format to csv, jsonl or xlsx")
    if found == "xlsx" and head:
        raise InputError(f"{where}: it is not an XLSX workbook; set --input-format to its format")
    return found


def open_rows(
    stack: ExitStack,
    path: Path | None,
    asked: Format | None = None,
    encoding: str | None = None,
    name_by: str | None = None,
) -> Reading:
    """Open a file or standard input.

    Args:
        stack: closes the file.
        path: the file; ``None`` means standard input.
        asked: the format, if the name does not determine it.
        encoding: the encoding, if the bytes do not determine it.
        name_by: a column that the file must have.

    Raises:
        InputError: the file cannot be opened or read at all. Iterating over the rows raises it too, if the
            file cannot be read any further.
    """
    explicit = encodings.by_name(encoding) if encoding is not None else None
    try:
        file = sys.stdin.buffer if path is None else stack.enter_context(path.open("rb"))
        # A read from a pipe may return less than a chunk.
        head = _read(file)
        kind = format_of(path, asked, head)
        size = path.stat().st_size if path is not None and path.is_file() else None
        if kind == "xlsx":
            if path is None or size is None or explicit:
                raise InputError("an Excel workbook must be a file, without --encoding")
            sheet = read_workbook(stack, path, name_by)
            return Reading(f"XLSX, {sheet}", sheet.rows, file, None, _attribute_columns(sheet.columns))
        found = (
            explicit
            or encodings.by_byte_order_mark(head)
            or _detect_encoding(path if size is not None else None)
        )
    except OSError as error:
        raise InputError(f"{path or 'the input'}: {error.strerror}") from error
    lines = without_end_mark(encodings.text_lines(chain((head,), _chunks(file)), found.codec))
    if kind == "jsonl":
        return Reading(f"JSONL in {found}", read_json_lines(lines, name_by), file, size)
    table = read_table(lines, name_by)
    return Reading(f"CSV in {found}, {table}", table.rows, file, size, _attribute_columns(table.columns))


def _attribute_columns(columns: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in columns if name and name not in FIELDS)


def _detect_encoding(path: Path | None) -> Encoding:
    """Detect the encoding of a file from all its bytes; a pipe is UTF-8, since it can be read only once."""

    def chunks() -> Iterator[bytes]:
        assert path is not None
        with path.open("rb") as file:
            yield from _chunks(file)

    if path is None:
        return encodings.UTF_8
    try:
        return encodings.detect(chunks)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read(file: BinaryIO) -> bytes:
    return file.read1(_CHUNK) if hasattr(file, "read1") else file.read(_CHUNK)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: _read(file), b"")


def without_end_mark(lines: Iterable[str]) -> Iterator[str]:
    """Remove the Ctrl-Z that DOS programs append to the last line."""
    held = None
    for line in lines:
        if held is not None:
            yield held
            held = None
        if line.rstrip("\r\n").endswith("\x1a"):
            held = line
        else:
            yield line
    if held is not None and (rest := held.rstrip("\x1a\r\n")):
        yield rest
