"""Output of results, tables and times, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from zimage_stream.cli.terminal import print_line
from zimage_stream.escaping import NAME_CHARACTERS, escaped, is_utf8, shortened
from zimage_stream.events.image_result import ImageResult


def print_json(record: dict[str, Any]) -> None:
    """Print a JSON object on one line: in UTF-8, or in ASCII if stdout has another encoding."""
    print_line(as_json(record, ascii_only=not is_utf8(sys.stdout)))


def print_result(result: ImageResult, *, json: bool) -> None:
    """Print the result of a request, as JSON or as a line for people."""
    if json:
        print_json(result_as_dict(result))
    else:
        print_line(result_as_line(result))


def result_as_dict(result: ImageResult) -> dict[str, Any]:
    """Convert a result to a mapping with the event's field names and nesting; times are in ISO 8601."""
    return plain_fields(result)


def plain_fields(event: Any) -> dict[str, Any]:
    """Convert an event to a mapping with the same field names and nesting; times are in ISO 8601."""
    return {name: _plain(value) for name, value in dataclasses.asdict(event).items()}


def result_as_line(result: ImageResult) -> str:
    """Summarise a result in one line: status, id, and the image's address or the error."""
    if result.image is not None:
        what = result.image.url or result.image.uri
    else:
        what = f"{result.error.code}: {result.error.message}" if result.error else ""
    return f"{result.status:<9} {shortened(result.request_id, NAME_CHARACTERS)}  {shortened(what)}".rstrip()


def as_json(record: dict[str, Any], *, ascii_only: bool = False) -> str:
    """Encode a mapping as one line of JSON, in which harmful characters are escaped."""
    return escaped(json.dumps(record, ensure_ascii=ascii_only))


def age(passed: timedelta) -> str:
    """Format a time span in a single unit: ``12 s``, ``3 h``, ``40 d``."""
    seconds = max(0, round(passed.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


class _Table(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
        shown = (escaped(shortened(cell)) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*shown, **options)


def table(*headings: str) -> Table:
    """Create an empty table; a heading that begins with ``>`` aligns its column to the right."""
    made = _Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        made.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return made


def print_table(made: Table) -> None:
    """Print a table to stdout, as wide as the terminal or, without one, up to 200 characters."""
    shown = console()
    if not shown.is_terminal and "COLUMNS" not in os.environ:
        shown = console(width=200)
    shown.print(made)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Create a console that prints ``[red]`` and ``:star:`` literally."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
