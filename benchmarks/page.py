"""Make docs/benchmarks.md from the figures in docs/benchmarks/*.json, which the benchmarks write with --json.

python -m benchmarks.page
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import Report, shown

DOCS = Path(__file__).parents[1] / "docs"
FOLDER, PAGE = DOCS / "benchmarks", DOCS / "benchmarks.md"
TITLES = {
    "saturation": "Keeping the device busy",
    "hundred_users": "A hundred users",
    "fairness": "Fairness",
    "overhead": "Where the milliseconds go",
    "scaling": "Scaling out",
    "peers": "Compared with other task systems",
    "path": "The pipeline's own cost",
    "growth": "Large backlogs",
    "encode": "Encoding",
    "transaction": "One publication",
    "recovery": "Recovery from a killed worker",
    "cancellation": "Cancelling",
    "memory": "Memory over thousands of images",
}
"""The sections, in their order."""
INTRODUCTION = """\
# Benchmarks

Each benchmark is one command that anyone can run. It prints its figures, and writes them with `--json FILE`.
`make benchmarks` runs all of them and generates this page from those files; no figure here was typed by hand.
Broker, store, workers and clients ran on one shared machine: compare the ratios, not the milliseconds.
"""
GPU = """\
## A GPU

`python benchmarks/gpu.py` measures a card with random weights of the real size. It has not been run on a GPU
yet.
"""


def main() -> None:
    """Write the page. Raises SystemExit where figures are missing."""
    found = {name: FOLDER / f"{name}.json" for name in TITLES}
    runs = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    missing = [name for name in TITLES if name not in runs]
    if missing:
        raise SystemExit(
            f"there are no figures of {', '.join(missing)}: run each with --json {FOLDER}/NAME.json"
        )
    text = "\n".join([INTRODUCTION, *(section(name, run) for name, run in runs.items()), GPU])
    PAGE.write_text(text)


def section(name: str, run: Mapping[str, Any]) -> str:
    """One benchmark's part of the page: what it says of itself, its findings, its table and its plot."""
    about = inspect.cleandoc(importlib.import_module(f"benchmarks.{name}").__doc__ or "")
    words, _, console = about.rpartition("\n\n")
    parts = [
        f"## {TITLES[name]}",
        words,
        f"```console\n$ {console.strip()}\n```",
        *(f"**{finding}**" for finding in run["findings"]),
        table(run),
    ]
    if run["plot"]:
        parts.append(f"![{run['plot']['y']}](benchmarks/{name}.svg)")
    machine = ", ".join(f"{what} {value}" for what, value in run["machine"].items())
    parts.append(f"<sub>{run['at']}: `{run['command']}`; {machine}</sub>")
    return "\n\n".join(parts) + "\n"


def table(run: Mapping[str, Any]) -> str:
    """In Markdown."""
    report = Report(run["columns"], run["rows"])
    lines = [report.columns, ["---"] * len(report.columns)]
    lines += [[shown(cell) for cell in row] for row in report.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
