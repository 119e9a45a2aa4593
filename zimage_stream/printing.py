"""Results as people and programs read them on a terminal."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from zimage_stream.events.image_result import ImageResult


def result_as_dict(result: ImageResult) -> dict[str, Any]:
    """Every field under its own name, nested as in the event; times in ISO 8601."""
    return plain_fields(result)


def plain_fields(event: Any) -> dict[str, Any]:
    """An event's fields by name, nested as in the event; times in ISO 8601."""
    return {name: _plain(value) for name, value in dataclasses.asdict(event).items()}


def result_as_line(result: ImageResult) -> str:
    """Status, id, and where the picture is or why there is none."""
    if result.image is not None:
        what = result.image.url or result.image.uri
    else:
        what = f"{result.error.code}: {result.error.message}" if result.error else ""
    return f"{result.status:<9} {result.request_id}  {what}".rstrip()


def as_json(record: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(record, ensure_ascii=False)


def age(passed: timedelta) -> str:
    """A time span in one unit, as short as it can be read: ``12 s``, ``3 h``, ``40 d``."""
    seconds = max(0, round(passed.total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def table(*headings: str) -> Table:
    """An empty table; a heading that begins with ``>`` has its column aligned to the right."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        made.add_column(heading.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    return made


def print_table(made: Table) -> None:
    """To stdout, as wide as the terminal; where there is none, as wide as it needs to be."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=200)
    console.print(made, highlight=False)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
