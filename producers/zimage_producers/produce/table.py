"""CSV input: detects the delimiter, and reads the header and the rows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from zimage_producers.produce.columns import check_columns, field_resembled_by
from zimage_producers.produce.rows import InputError, Row
from zimage_stream.errors import RequestError, short_repr
from zimage_stream.events.texts import FIELDS, field_from_text, is_text

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}

_SEP_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.ASCII)


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file whose header has been read. Rows are read lazily."""

    delimiter: str
    why: str
    columns: tuple[str, ...]
    rows: Iterator[Row]

    def __str__(self) -> str:
        separated = DELIMITERS.get(self.delimiter, repr(self.delimiter))
        return f"columns separated by {separated}{self.why}"


def delimiter_of(header: str) -> str:
    """Detect the delimiter: the one that yields a column named prompt.

    Raises:
        InputError: the header is ambiguous.
    """
    found = [each for each in DELIMITERS if any(_is_prompt(name) for name in _cells(header, each))]
    if len(found) > 1 and any(each in header for each in found):
        raise InputError(
            f"the columns of {short_repr(header.strip())} can be separated by "
            f"{' or '.join(DELIMITERS[each] for each in found)}: insert a line sep=; or sep=, before it"
        )
    return found[0] if found else ","


def _is_prompt(name: str) -> bool:
    return name.strip() == "prompt" or field_resembled_by(name) == "prompt"


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def read_table(lines: Iterable[str], name_by: str | None = None) -> Table:
    """Read a table from lines, which must include their line ends, since a cell may contain some.

    Raises:
        InputError: there is no usable header.
    """
    source = iter(lines)
    number, delimiter, why = 0, None, ""
    for line in source:
        number += 1
        if delimiter is None and (asked := _SEP_LINE.fullmatch(line)):
            delimiter, why = asked[1], f", as specified in line {number}"
        elif line.strip(",;\t \r\n"):
            break
    else:
        raise InputError("it is empty: the first line must name the columns, including prompt")
    delimiter = delimiter or delimiter_of(line)
    reader = _Reader(chain((line,), source), delimiter, number)
    header = reader.header()
    while header and not header[-1]:
        header.pop()
    check_columns(header, number, name_by)
    return Table(delimiter, why, tuple(header), reader.rows(header))


class _Reader:
    """A CSV reader that remembers the lines of the current row and where the row began."""

    def __init__(self, lines: Iterable[str], delimiter: str, first_line: int) -> None:
        self._line = first_line - 1
        self._row: list[str] = []
        self._delimiter = delimiter
        self._csv = csv.reader(
            self._remembering(lines), delimiter=delimiter, strict=True, skipinitialspace=True
        )

    def _remembering(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._line += 1
            self._row.append(line)
            yield line

    def header(self) -> list[str]:
        try:
            return [name.strip() for name in next(self._csv)]
        except csv.Error as error:
            line = self._line - len(self._row) + 1
            raise InputError(f"the column names: {self._broken(line, error)}") from error

    def rows(self, header: Sequence[str]) -> Iterator[Row]:
        number, named = 0, all(header)
        while True:
            self._row.clear()
            line = self._line + 1
            try:
                cells = next(self._csv)
            except StopIteration:
                return
            except csv.Error as error:
                number += 1
                yield Row(line, number, {}, self._broken(line, error))
                continue
            if not any(cell.strip() for cell in cells):
                continue
            number += 1
            problem = None if named and len(cells) <= len(header) else _stray_cell(cells, header)
            if problem is None and len(self._row) > 1:
                problem = _swallowed_rows(cells, header, self._delimiter, line)
            values = {name: cell for name, cell in zip(header, cells, strict=False) if cell != "" and name}
            yield Row(line, number, {} if problem else values, problem)

    def _broken(self, line: int, error: csv.Error) -> str:
        at = open_quote(self._row, self._delimiter)
        if at is None:
            return f"it is not CSV: {error}"
        below, column = at
        quote = f"the quote that opens in line {line + below:,}, column {column:,}"
        if "unexpected end" in str(error) or "field limit" in str(error):
            return f"{quote} is never closed{self._lost(line)}"
        return (
            f"{quote} is followed by text where it closes in line {self._line:,}{self._lost(line)}; "
            'double a quote within a cell: ""'
        )

    def _lost(self, line: int) -> str:
        """Describe the lines that were lost with the broken row."""
        return (
            f"; it contains lines {line:,} to {self._line:,}, which were not sent"
            if self._line > line
            else ""
        )


def open_quote(lines: Sequence[str], delimiter: str) -> tuple[int, int] | None:
    """Find where the last quoted cell of a row begins: its line, from 0, and its column, from 1. Pure."""
    quoted, fresh, last = False, True, None
    for below, line in enumerate(lines):
        for column, character in enumerate(line, 1):
            if quoted:
                quoted = character != '"'
            elif character == '"' and (fresh or (last and line[column - 2 : column - 1] == '"')):
                # A doubled quote closes a cell and opens it again.
                last = (below, column) if fresh else last
                quoted, fresh = True, False
            else:
                fresh = character == delimiter or (fresh and character == " ")
    return last


def _stray_cell(cells: Sequence[str], header: Sequence[str]) -> str | None:
    """Describe a cell that belongs to no column; empty ones are padding from a spreadsheet."""
    for column, cell in enumerate(cells):
        if cell.strip() and not (column < len(header) and header[column]):
            if column < len(header):
                return f"column {column + 1} has no name, but contains {short_repr(cell)}"
            counts = f"it has {len(cells)} cells, but there are {len(header)} columns"
            return f"{counts}; a cell that contains the separator must be in quotes"
    return None


def _swallowed_rows(cells: Sequence[str], header: Sequence[str], delimiter: str, line: int) -> str | None:
    """Detect a cell that has swallowed rows, because its quote is closed by one of a later row."""
    for column, (name, cell) in enumerate(zip(header, cells, strict=False)):
        first, *more = re.split(r"\r\n|\r|\n", cell)
        whole = [part.split(delimiter) for part in more[:-1]]
        begun = [*cells[:column], *first.split(delimiter)]
        if more and (
            _looks_like_row(begun, header, column + 1) or any(_looks_like_row(each, header) for each in whole)
        ):
            return (
                f"column {short_repr(name)} contains {short_repr(cell)}, which looks like several rows: is "
                f"there an unclosed quote in line {line:,}? If it really is one cell, use XLSX or JSON Lines"
            )
    return None


def _looks_like_row(cells: Sequence[str], header: Sequence[str], own: int = 0) -> bool:
    """Whether these could be the cells of a row, judging by those from index ``own`` on."""
    if not max(2, own + 1) <= len(cells) <= len(header) or any(cell[:1].isspace() for cell in cells[1:]):
        # In prose a space follows a comma.
        return False
    if not any(map(_is_typed, header[own:])):
        return len(cells) == len(header)
    pairs = [*zip(header, cells, strict=False)][own:]
    typed = [(name, cell) for name, cell in pairs if cell and _is_typed(name)]
    return bool(typed) and all(_fits(name, cell) for name, cell in typed)


def _is_typed(name: str) -> bool:
    return name in FIELDS and not is_text(name)


def _fits(name: str, cell: str) -> bool:
    try:
        field_from_text(name, cell)
    except RequestError:
        return False
    return True
