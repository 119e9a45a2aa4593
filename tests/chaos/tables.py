"""Tables of measured figures, written into a page between two comments that name them."""

from __future__ import annotations

import re
from pathlib import Path


def write_table(page: Path, name: str, table: str) -> None:
    """Replace the text between ``<!-- name -->`` and ``<!-- /name -->``. Raises ValueError if there is
    none."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = page.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no block {begin} … {end}")
    page.write_text(
        re.sub(
            f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.S
        )
    )
