"""What the commands print, in any encoding, and that all of it goes through one module."""

from __future__ import annotations

import ast
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.hostile import HOSTILE, assert_harmless
from zimage_stream.cli.printing import (
    console,
    print_json,
    print_table,
    result_as_dict,
    result_as_line,
    table,
)
from zimage_stream.cli.terminal import prepare_streams, print_error, print_line
from zimage_stream.events.image_result import Failure, ImageResult, Source, Status

ROOT = Path(__file__).parents[2]
MODULES = [
    path
    for folder in ("zimage_stream", "producers", "consumers")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def printing_calls(path: Path) -> list[str]:
    """Calls that print their arguments unescaped."""
    names = ("echo", "secho", "print", "Console")
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            found += [f"{path.name}:{node.lineno} {name}"] * (name in names)
    return found


def test_only_one_module_prints() -> None:
    # printing.py prints tables, whose cells it escapes; the demo draws on the console of printing.py.
    may = {ROOT / "zimage_stream/cli/printing.py", ROOT / "zimage_stream/cli/demo/run.py"}
    assert [call for path in MODULES if path not in may for call in printing_calls(path)] == []


def test_lines_errors_and_tables_are_escaped(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_line(HOSTILE)
    print_line(HOSTILE, err=True)
    print_error(f"first\n{HOSTILE}")
    rows = table("NAME", ">COUNT")
    rows.add_row(HOSTILE, "[link=http://x]1[/link]")
    print_table(rows)
    out, err = capfdbinary.readouterr()
    assert "[red]:star:[/red]" in assert_harmless(out)
    assert "[link=http://x]1[/link]" in assert_harmless(out)
    assert len(assert_harmless(err).splitlines()) == 5


def test_errors_are_shortened_and_json_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    much = "x" * (4 << 20)
    print_line(much, err=True)
    print_error(f"first\n{much}" + "\n" * (1 << 20))
    print_json({"id": much})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"id": much}
    assert "(4194304 characters)" in err
    assert len(err) < 100_000


def test_results_and_tables_for_people_are_shortened() -> None:
    much = "x" * (4 << 20)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    result = ImageResult(
        request_id=much,
        status=Status.FAILED,
        error=Failure(code="INVALID_REQUEST", message=much, retriable=False),
        source=Source(topic="requests", partition=0, offset=0),
        requested_at=at,
        completed_at=at,
    )
    assert len(result_as_line(result)) < 3_000
    assert result_as_dict(result)["request_id"] == much
    rows = table("NAME")
    rows.add_row(much)
    shown = console(width=200)
    with shown.capture() as printed:
        shown.print(rows)
    assert len(printed.get()) < 3_000


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8", "cp437"])
def test_output_works_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    prepare_streams()
    record = {"prompt": "é狐😀"}
    print_json(record)
    print_line("é狐😀")
    rows = table("NAME")
    rows.add_row("é狐😀")
    print_table(rows)
    first, second, *_ = raw.getvalue().splitlines()
    # JSON is read as UTF-8, whatever the terminal's encoding.
    assert json.loads(first.decode("utf-8")) == record
    assert second.decode(encoding) in ("é狐😀", "é\\u72d0\\U0001f600", "\\xe9\\u72d0\\U0001f600")
