"""The gallery page: every text comes out of it as it went in, and none is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zimage_stream.client import gallery
from zimage_stream.client.gallery import write_gallery
from zimage_stream.escaping import escaped


def data_of(page: Path) -> dict[str, Any]:
    """The data that a browser would read from the page."""
    html = page.read_text(encoding="utf-8")
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert html.count("</script>") == 2
    found: dict[str, Any] = json.loads(inside)
    return found


def shown_as(value: Any) -> Any:
    """A value as the page shows it, with control and bidirectional characters escaped."""
    return escaped(value, keep="\n\t") if isinstance(value, str) else value


texts = st.text(st.characters(codec="utf-8")) | st.just("</script><script>alert(1)</script><!--")
rows = st.lists(st.dictionaries(texts, texts | st.integers() | st.none(), max_size=4), max_size=5)


@given(texts, rows, texts)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_is_shown_and_none_is_executed(
    tmp_path: Path, title: str, given_rows: list[dict[str, Any]], note: str
) -> None:
    page = write_gallery(tmp_path, title, given_rows, note)
    shown = [{name: shown_as(value) for name, value in row.items()} for row in given_rows]
    assert data_of(page) == {"title": shown_as(title), "rows": shown, "note": shown_as(note)}
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_more_rows_than_a_browser_can_show_are_left_out_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MAX_ROWS", 3)
    data = data_of(write_gallery(tmp_path, "t", ({"n": n} for n in range(5))))
    assert ([row["n"] for row in data["rows"]], data["note"]) == ([0, 1, 2], "The first 3 of 5 results.")


def test_an_existing_page_stays_intact_if_writing_fails(tmp_path: Path) -> None:
    write_gallery(tmp_path, "before", [])

    def broken() -> Iterator[dict[str, Any]]:
        yield {}
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_gallery(tmp_path, "after", broken())
    assert data_of(tmp_path / "index.html")["title"] == "before"


def test_bidirectional_and_surrogate_characters_are_escaped(tmp_path: Path) -> None:
    page = write_gallery(tmp_path, "b\udcff", [{"prompt": "cat\u202egnp.exe"}])
    assert data_of(page)["title"] == "b\\udcff"
    assert data_of(page)["rows"] == [{"prompt": "cat\\u202egnp.exe"}]
