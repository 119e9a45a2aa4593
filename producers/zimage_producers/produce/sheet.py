"""XLSX input: finds the sheet with prompts in a workbook, and reads its rows one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from itertools import islice
from pathlib import Path
from typing import Any

from zimage_producers.produce.columns import check_columns, field_resembled_by
from zimage_producers.produce.rows import InputError, Row
from zimage_stream.errors import short_repr

_HEADER_WITHIN = 100
"""Number of rows at the top that are searched for the header, which is the first row that is not empty."""

_EXACT = 1e15


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet whose header has been read. Rows are read lazily."""

    name: str
    columns: tuple[str, ...]
    rows: Iterator[Row]

    def __str__(self) -> str:
        return f"sheet {short_repr(self.name)}"


def read_workbook(stack: ExitStack, path: Path, name_by: str | None = None) -> Sheet:
    """Open the only sheet with a column ``prompt``.

    Args:
        stack: closes the file.
        name_by: a column that the sheet must have.

    Raises:
        InputError: the file is not a workbook, or does not have exactly one sheet with prompts.
    """
    with _readable(path):
        # Opened twice, for the values and for the formulas: a formula that was never computed has no value.
        shown, written = (_open(stack, path, data_only=each) for each in (True, False))
        headers = {sheet.title: _header(sheet) for sheet in shown.worksheets}
    found = [name for name, (_, names) in headers.items() if _has_prompt(names)] or list(headers)[:1]
    if len(found) != 1:
        raise InputError(
            f"{path}: sheets {', '.join(map(short_repr, found))} have prompts: keep one, or save one as CSV"
            if found
            else f"{path}: the workbook has no sheet with cells"
        )
    line, names = headers[found[0]]
    while names and not names[-1]:
        names.pop()
    check_columns(names, line, name_by)
    rows = _rows(path, shown[found[0]], written[found[0]], line, names)
    return Sheet(found[0], tuple(names), rows)


def _open(stack: ExitStack, path: Path, *, data_only: bool) -> Any:
    # The import takes a third of a second, which other commands need not spend.
    from openpyxl import load_workbook

    # Given a name, openpyxl would refuse a workbook that is called .csv.
    file = stack.enter_context(path.open("rb"))
    return load_workbook(file, read_only=True, data_only=data_only)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert exceptions of openpyxl and the modules that it uses: all of them mean an invalid workbook."""
    try:
        with warnings.catch_warnings():
            # It warns about features that it ignores: styles, validation, charts.
            warnings.simplefilter("ignore")
            yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: it looks like an Excel workbook but cannot be read as one ({type(error).__name__}: "
            f"{short_repr(str(error))}): save it again as XLSX, or as CSV UTF-8"
        ) from error


def _header(sheet: Any) -> tuple[int, list[str]]:
    """Return the line number and the names of the header, which is the first row that is not empty."""
    sheet.reset_dimensions()
    for line, cells in enumerate(islice(sheet.iter_rows(values_only=True), _HEADER_WITHIN), 1):
        names = ["" if cell is None else str(cell).strip() for cell in cells]
        if any(names):
            return line, names
    return 1, []


def _has_prompt(names: Sequence[str]) -> bool:
    return any(name == "prompt" or field_resembled_by(name) == "prompt" for name in names)


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
    """Return the values of a row by column, or what is wrong with it."""
    values: dict[str, Any] = {}
    for column, (cell, formula) in enumerate(zip(cells, formulas, strict=True)):
        if formula.value is None or (isinstance(cell.value, str) and not cell.value.strip()):
            continue
        name = header[column] if column < len(header) else ""
        if not name:
            return {}, f"column {column + 1} has no name, but contains {short_repr(formula.value)}"
        if cell.data_type == "e":
            return {}, f"column {short_repr(name)} shows {cell.value}: fix the formula"
        if cell.value is None:
            problem = "has a formula that was never computed: save the file in Excel"
            return {}, f"column {short_repr(name)} {problem}"
        if isinstance(cell.value, float) and abs(cell.value) >= _EXACT:
            lost = f"{cell.value} has lost digits, because Excel keeps only 15: format the cell as text"
            return {}, f"column {short_repr(name)}: {lost}"
        values[name] = _plain(cell.value)
    return values, None


def _plain(value: Any) -> Any:
    """Convert a cell: times to ISO 8601, and midnight to a date, which is how workbooks store dates."""
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return value if isinstance(value, str | int | float) else str(value)
