from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from zimage_producers.produce.reading import open_rows
from zimage_producers.produce.rows import InputError, Row, request_of


def saved(path: Path, **sheets: list[list[Any]]) -> Path:
    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def read(path: Path, **more: Any) -> tuple[str, list[Row]]:
    with ExitStack() as stack:
        reading = open_rows(stack, path, **more)
        return reading.described, [*reading.rows]


@pytest.mark.parametrize("name", ["prompts.xlsx", "prompts.csv"])
def test_a_workbook_is_read_whatever_its_name(tmp_path: Path, name: str) -> None:
    rows: list[list[Any]] = [
        [],
        ["prompt", "width", "seed", "expires_at", "sku", None],
        ["红色的心", 64.0, 7, datetime(2030, 1, 31, 12), 123, None],  # noqa: DTZ001
        [None] * 6,
        ["a blue star", None, None, None, 1.5, " "],
    ]
    book = saved(tmp_path / "book.xlsx", Notes=[["nothing"]], Prompts=rows)
    how, (heart, star) = read(Path(shutil.move(book, tmp_path / name)))
    assert how == "XLSX, sheet 'Prompts'"
    request = request_of(heart, "b", "r", {})
    assert (request.prompt, request.width, request.seed) == ("红色的心", 64, 7)
    assert request.expires_at == datetime(2030, 1, 31, 12, tzinfo=UTC)
    assert request.attributes == {"sku": "123"}
    assert (heart.line, star.line, star.number) == (3, 5, 2)
    assert request_of(star, "b", "r", {}).attributes == {"sku": "1.5"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (1.2345678901234567e17, "column 'seed': .* has lost digits, because Excel keeps only 15"),
        ("=A1+1", "column 'seed' has a formula that was never computed"),
        ("#REF!", "column 'seed' shows #REF!"),
    ],
)
def test_a_cell_without_a_usable_value_is_reported(tmp_path: Path, value: Any, problem: str) -> None:
    _, (bad, good) = read(saved(tmp_path / "a.xlsx", A=[["prompt", "seed"], ["a", value], ["b", 1]]))
    assert bad.problem is not None
    assert re.search(problem, bad.problem)
    assert good.values == {"prompt": "b", "seed": 1}


@pytest.mark.parametrize(
    ("sheets", "problem"),
    [
        ({"A": [["prompt"], ["a"]], "B": [["prompt"], ["b"]]}, "sheets 'A', 'B' have prompts: keep one"),
        ({"A": [["Prompt"], ["a"]]}, "the column 'Prompt' is not a field: write prompt"),
        ({"A": [["text"], ["a"]]}, r"line 1 must name the columns, including prompt; it is \['text'\]$"),
        ({"A": []}, "must name the columns"),
    ],
)
def test_a_workbook_without_one_sheet_of_prompts_is_refused(
    tmp_path: Path, sheets: dict[str, list[list[Any]]], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        read(saved(tmp_path / "a.xlsx", **sheets))


def test_cells_without_a_column_are_reported(tmp_path: Path) -> None:
    _, (row,) = read(saved(tmp_path / "a.xlsx", A=[["prompt"], ["a", "x"]]))
    assert row.problem == "column 2 has no name, but contains 'x'"


def test_a_workbook_has_no_encoding(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without --encoding"):
        read(saved(tmp_path / "a.xlsx", A=[["prompt"], ["a"]]), encoding="utf-8")
