"""XLSX: the sheet of a workbook that has prompts, and its rows, one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

from zimage_producers.produce.columns import check_columns, meant
from zimage_producers.produce.rows import InputError, Row
from zimage_stream.errors import shorten

_HEADER_WITHIN = 100
"""Rows at the top among which the first that is not empty is looked for."""

_EXACT = 1e15


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet whose header is read. Rows come as they are asked for."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[Row]

    def __str__(self) -> str:
        return f"sheet {shorten(self.name)}"


def read_workbook(stack: ExitStack, path: Path, name_by: str | None = None) -> Sheet:
    """The one sheet that has a column ``prompt``.

    Args:
        stack: closes the file.
        name_by: a column that it must have.

    Raises:
        InputError: it is no workbook, or none of its sheets or several have prompts.
    """
    with _readable(path):
        # As people see them, and as they are computed: what was never computed has no value to see.
        shown, written = (_open(stack, path, data_only=each) for each in (True, False))
        headers = {sheet.title: _header(sheet) for sheet in shown.worksheets}
    found = [name for name, (_, names) in headers.items() if _has_prompt(names)] or list(headers)[:1]
    if len(found) != 1:
        raise InputError(
            f"{path}: sheets {', '.join(map(shorten, found))} have prompts: keep one, or save one as CSV"
            if found
            else f"{path}: it has no sheet with cells"
        )
    line, names = headers[found[0]]
    while names and not names[-1]:
        names.pop()
    check_columns(names, line, name_by)
    rows = _rows(path, shown[found[0]], written[found[0]], line, names)
    return Sheet(found[0], tuple(names), rows)


def _open(stack: ExitStack, path: Path, *, data_only: bool) -> Any:
    # Takes a third of a second to import, which no other command should wait for.
    from openpyxl import load_workbook

    # By its name openpyxl would refuse a workbook that is called .csv.
    file = stack.enter_context(path.open("rb"))
    return load_workbook(file, read_only=True, data_only=data_only)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever openpyxl and the modules below it raise about a file means that it is no workbook."""
    try:
        with warnings.catch_warnings():
            # It warns of what it leaves out: styles, validation, charts.
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: it begins as an Excel workbook and cannot be read as one ({type(error).__name__}: "
            f"{shorten(str(error))}): save it again as XLSX, or as CSV UTF-8"
        ) from error


def _header(sheet: Any) -> tuple[int, list[str]]:
    """The first row that is not empty, and where it is."""
    sheet.reset_dimensions()
    for line, cells in enumerate(islice(sheet.iter_rows(values_only=True), _HEADER_WITHIN), 1):
        names = ["" if cell is None else str(cell).strip() for cell in cells]
        if any(names):
            return line, names
    return 1, []


def _has_prompt(names: Sequence[str]) -> bool:
    return any(name == "prompt" or meant(name) == "prompt" for name in names)


def _rows(path: Path, shown: Any, written: Any, header_line: int, header: Sequence[str]) -> Iterator[Row]:
    number = 0
    written.reset_dimensions()
    with _readable(path):
        pairs = zip(shown.iter_rows(), written.iter_rows(), strict=True)
        for line, (cells, formulas) in enumerate(pairs, 1):
            if line <= header_line or all(cell.value is None for cell in formulas):
                continue
            number += 1
            values, problem = _values(cells, formulas, header)
            yield Row(line, number, {} if problem else values, problem)


def _values(
    cells: Sequence[Any], formulas: Sequence[Any], header: Sequence[str]
) -> tuple[dict[str, Any], str | None]:
    """The values of a row by column, or what is wrong with it."""
    values: dict[str, Any] = {}
    for column, (cell, formula) in enumerate(zip(cells, formulas, strict=True)):
        if formula.value is None or (isinstance(cell.value, str) and not cell.value.strip()):
            continue
        name = header[column] if column < len(header) else ""
        if not name:
            return {}, f"column {column + 1} has no name, and holds {shorten(formula.value)}"
        if cell.data_type == "e":
            return {}, f"column {shorten(name)} shows {cell.value}: mend the formula"
        if cell.value is None:
            return {}, f"column {shorten(name)} has a formula that was never computed: save the file in Excel"
        if isinstance(cell.value, float) and abs(cell.value) >= _EXACT:
            lost = f"{cell.value} has lost digits, of which Excel keeps 15: make it text there"
            return {}, f"column {shorten(name)}: {lost}"
        values[name] = _plain(cell.value)
    return values, None


def _plain(value: Any) -> Any:
    """Times as ISO 8601; a time of midnight is how a workbook keeps a day."""
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if isinstance(value, str | int | float) else str(value)
