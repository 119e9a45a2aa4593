"""Which module may import which, and how long modules and classes may be, read from the sources."""

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
MAX_CLASS_LINES = 250
LONGER_CLASSES = {"PromptClient", "Registry"}
"""Known exceptions, to be split."""

WORKER = "zimage_consumers.image_worker"
FLOORS = {
    "zimage_stream": [
        {"zimage_stream.cli"},
        {"zimage_stream.client"},
        {
            f"zimage_stream.{room}"
            for room in ("events", "kafka", "stores", "engines", "imaging", "telemetry")
        },
    ],
    WORKER: [
        {f"{WORKER}.host"},
        {f"{WORKER}.worker"},
        {f"{WORKER}.message_path"},
        {f"{WORKER}.stages"},
        {f"{WORKER}.group", f"{WORKER}.device"},
        {f"{WORKER}.window"},
    ],
}
"""Floors of packages from the top down: none imports from a floor above it."""


def modules(path: Path) -> Iterator[str]:
    """Every module that the file at this path imports, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported(path: Path) -> set[str]:
    """The top-level packages that the file imports from."""
    return {name.partition(".")[0] for name in modules(path)}


def name_of(side: str, path: Path) -> str:
    parts = path.relative_to(SIDES[side].parent).with_suffix("").parts
    return ".".join(parts)


def floor_of(module: str, floors: list[set[str]]) -> int | None:
    """Number of the floor that a module is on, counted from the top; ``None`` if it is on none."""
    for number, rooms in enumerate(floors):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return number
    return None


def test_every_package_has_modules() -> None:
    assert {side for side, _ in MODULES} == set(SIDES)


@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_producers_and_consumers_import_only_the_library(side: str, path: Path) -> None:
    # cli/main.py mounts the commands of both sides, by name, when they are run.
    assert imported(path) & set(SIDES) <= {side, "zimage_stream"}


@pytest.mark.parametrize("house", FLOORS)
@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_no_package_imports_from_a_floor_above_it(house: str, side: str, path: Path) -> None:
    own = floor_of(name_of(side, path), FLOORS[house])
    if own is not None:
        floors = {name: floor_of(name, FLOORS[house]) for name in modules(path)}
        assert [name for name, floor in floors.items() if floor is not None and floor < own] == []


@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_no_module_is_too_long_to_read_in_one_sitting(side: str, path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(("side", "path"), MODULES, ids=lambda value: str(value).rpartition("/")[2])
def test_no_class_is_too_long_to_keep_in_mind(side: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in classes}
    too_long = {name for name, length in lengths.items() if length > MAX_CLASS_LINES}
    assert too_long - LONGER_CLASSES == set()
