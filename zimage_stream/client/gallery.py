"""A gallery page for a folder of images, which opens from disk without a server or network."""

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
"""Maximum number of results on the page; browsers open a longer one slowly."""

_PLACEHOLDER = "/*DATA*/"


def write_gallery(folder: Path, title: str, rows: Iterable[Mapping[str, Any]], note: str = "") -> Path:
    """Write ``index.html`` into the folder, replacing an existing page atomically.

    Args:
        title: title of the page.
        rows: one row for each result, iterated once. Every row has ``status``, ``request_id`` and ``prompt``;
            with an image also ``file`` (relative to the folder, with ``/`` between names), ``width``,
            ``height`` and ``seed``. Other fields are shown when an image is opened. Rows beyond ``MAX_ROWS``
            are omitted, and a note on the page gives their number.
        note: text above the images.

    Raises:
        OSError: the page cannot be written.
    """
    before, after = files("zimage_stream").joinpath("gallery.html").read_text("utf-8").split(_PLACEHOLDER)
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
    # Within a script element, only "<" can begin a sequence that ends it.
    return json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")


def _shown(value: Any) -> Any:
    return escaped(value, keep="\n\t") if isinstance(value, str) else value
