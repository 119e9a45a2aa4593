"""Rows of a file and the requests they ask for. Pure, but for the reading itself."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from zimage_stream.errors import RequestError, ZImageError, shorten
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.rules import NAME
from zimage_stream.events.texts import FIELDS, field_from_text

Format = Literal["csv", "jsonl"]

_CHUNK = 1 << 16
_MAX_PREFIX = 100


class InputError(ZImageError):
    """The file cannot be read at all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: ``line`` is where it begins in the file and ``number`` counts rows, both from 1.

    ``problem`` is set, and ``values`` empty, where it could not be read.
    """

    line: int
    number: int
    values: Mapping[str, Any]
    problem: str | None = None


def format_of(path: Path | None, asked: Format | None) -> Format:
    """The format asked for, else what the file's name says, else JSONL for standard input.

    Raises:
        InputError: the name says nothing.
    """
    if asked is not None:
        return asked
    if path is None or path.suffix.lower() in (".jsonl", ".ndjson"):
        return "jsonl"
    if path.suffix.lower() == ".csv":
        return "csv"
    raise InputError(f"{path}: say with --input-format whether this is csv or jsonl")


def encoding_of(path: Path) -> str:
    """``utf-8-sig`` if the whole file is UTF-8, with or without its mark, else ``gb18030``.

    Raises:
        InputError: it is neither, or cannot be opened.
    """
    for encoding in ("utf-8-sig", "gb18030"):
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    decoder.decode(chunk)
            decoder.decode(b"", final=True)
            return encoding
        except UnicodeDecodeError:
            continue
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
    raise InputError(f"{path}: it is neither UTF-8 nor GB18030; save it as UTF-8")


def read_rows(file: BinaryIO, kind: Format, encoding: str) -> Iterator[Row]:
    """The rows of an open file, one at a time.

    Raises:
        InputError: a CSV file has no usable header, or the text breaks off inside a character.
    """
    # Line ends stay as they are: a cell of CSV may hold some.
    text = io.TextIOWrapper(file, encoding, newline="")
    try:
        yield from (_csv_rows if kind == "csv" else _json_rows)(text)
    except UnicodeDecodeError as error:
        raise InputError(f"the input is not {encoding}: {error.reason}") from error
    finally:
        # Else the wrapper would close a file that is not its own.
        text.detach()


def _csv_rows(text: Iterable[str]) -> Iterator[Row]:
    reader = csv.reader(text)
    header = [name.strip() for name in next(reader, [])]
    if "prompt" not in header:
        raise InputError(f"the first line must name the columns, prompt among them; it is {shorten(header)}")
    if len(set(header)) < len(header):
        raise InputError(f"a column is named twice in {shorten(header)}")
    number = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield Row(line, number, {}, f"it is no CSV: {error}")
            continue
        if not any(cell.strip() for cell in cells):
            continue
        number += 1
        if len(cells) > len(header):
            yield Row(line, number, {}, f"it has {len(cells)} cells, and there are {len(header)} columns")
            continue
        yield Row(line, number, {name: cell for name, cell in zip(header, cells, strict=False) if cell != ""})


def _json_rows(text: Iterable[str]) -> Iterator[Row]:
    number = 0
    for line, content in enumerate(text, 1):
        if not content.strip():
            continue
        number += 1
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            yield Row(line, number, {}, f"it is no JSON: {error}")
            continue
        if not isinstance(values, dict):
            yield Row(line, number, {}, f"it is no JSON object: {shorten(values)}")
            continue
        yield Row(line, number, {name: value for name, value in values.items() if value is not None})


def request_of(row: Row, batch_id: str, defaults: Mapping[str, Any]) -> PromptRequest:
    """The request that a row asks for.

    A row without a ``request_id`` gets ``{batch}-{row}``, so that sending the file again asks for
    the same pictures. Columns that are no field of a request become attributes.

    Args:
        defaults: fields for rows that do not say.

    Raises:
        RequestError: a value is not of its field's kind; the rules are not checked here.
    """
    known = {name: field_from_text(name, value) for name, value in row.values.items() if name in FIELDS}
    unknown = {name: _as_text(value) for name, value in row.values.items() if name not in FIELDS}
    own = known.pop("attributes", {})
    if not isinstance(own, dict):
        raise RequestError("attributes", "a JSON object of texts", own)
    request = {"batch_id": batch_id, "request_id": f"{id_prefix(batch_id)}-{row.number}", **defaults, **known}
    attributes = {**defaults.get("attributes", {}), **unknown, **own}
    request.setdefault("prompt", "")
    return PromptRequest(**{**request, "attributes": attributes})


def batch_name(path: Path | None, at: datetime) -> str:
    """A name for a batch that was given none: the file's, made an id's alphabet, and the time."""
    return f"{_in_alphabet(path.stem if path else 'stdin')}-{at.astimezone(UTC):%Y%m%d-%H%M%S}"


def id_prefix(batch_id: str) -> str:
    """What the ids of a batch begin with: its name, or, where that is not in an id's alphabet, one
    that no other batch shares."""
    if NAME.fullmatch(batch_id) and len(batch_id) <= _MAX_PREFIX:
        return batch_id
    return f"{_in_alphabet(batch_id)}-{hashlib.sha256(batch_id.encode()).hexdigest()[:8]}"


def _in_alphabet(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._~-]+", "-", text).strip("-._~")[:60] or "batch"


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def open_input(path: Path | None) -> BinaryIO:
    """The file, or standard input.

    Raises:
        InputError: it cannot be opened.
    """
    if path is None:
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
