"""Who may import whom, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIDES = {
    "zimage_stream": ROOT / "zimage_stream",
    "zimage_producers": ROOT / "producers" / "zimage_producers",
    "zimage_consumers": ROOT / "consumers" / "zimage_consumers",
}
MODULES = [(side, path) for side, folder in SIDES.items() for path in sorted(folder.rglob("*.py"))]
MAX_LINES = 500


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield (node.module or "").partition(".")[0]


def test_there_is_something_to_read() -> None:
    assert {side for side, _ in MODULES} == set(SIDES)


@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_the_arrows_point_to_the_library_alone(side: str, path: Path) -> None:
    # cli.py mounts the commands of both sides, by name, when they are run.
    assert set(imported(path)) & set(SIDES) <= {side, "zimage_stream"}


@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_a_module_can_be_read_in_a_sitting(side: str, path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
