"""A folder of pictures as one page that opens from disk, without a server and without a network."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from zimage_stream.escaping import escaped

PAGE = "index.html"
MAX_ROWS = 20_000
"""More would make a page that browsers open slowly."""

_PLACE = "/*DATA*/"


def write_gallery(folder: Path, title: str, rows: Iterable[Mapping[str, Any]], note: str = "") -> Path:
    """Write ``index.html`` into the folder; a page that is there is replaced at once, never half.

    Args:
        rows: one for each result, read once, with ``status``, ``request_id`` and ``prompt``; a picture's
            ``file``, relative to the folder with ``/`` between names, its ``width``, ``height`` and
            ``seed``; all else is shown when a picture is opened. Beyond ``MAX_ROWS`` they are left out,
            and the page says so.
        note: shown above the pictures.

    Raises:
        OSError: the folder cannot be written.
    """
    before, after = files("zimage_stream").joinpath("gallery.html").read_text("utf-8").split(_PLACE)
    path, unfinished = folder / PAGE, folder / f".{PAGE}.part"
    count = 0
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(f'{before}{{"title": {_json(title)}, "rows": [')
        for count, row in enumerate(rows, 1):
            if count <= MAX_ROWS:
                file.write(("," if count > 1 else "") + "\n" + _json(dict(row)))
        if count > MAX_ROWS:
            note = f"{note}\nThe first {MAX_ROWS:,} of {count:,} results.".strip()
        file.write(f'\n], "note": {_json(note)}}}{after}')
    os.replace(unfinished, path)
    return path


def _json(value: Any) -> str:
    shown = {name: _shown(each) for name, each in value.items()} if isinstance(value, dict) else _shown(value)
    # Inside a script element only this sequence could end it.
    return json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")


def _shown(value: Any) -> Any:
    return escaped(value, keep="\n\t") if isinstance(value, str) else value
