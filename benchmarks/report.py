"""What every benchmark does with its figures: a table, and JSON and a plot for ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

Cell = str | float | int | None
"""Of a table; floats are shown with three significant digits."""

_PACKAGES = ("confluent-kafka", "pillow", "minio", "rq", "celery", "dramatiq", "faststream")


@dataclass(frozen=True)
class Plot:
    """One picture.

    Attributes:
        series: points (x, y) by name; bars take the name of a group for x.
        log: axes that are logarithmic.
        line: a level that is to be kept, and what it is.
    """

    kind: Literal["lines", "bars"]
    x: str
    y: str
    series: Mapping[str, Sequence[tuple[float | str, float]]]
    log: Literal["", "x", "y", "xy"] = ""
    line: tuple[float, str] | None = None


@dataclass(frozen=True)
class Report:
    """The figures of one run.

    Attributes:
        columns: of the table.
        findings: whole sentences, each with its figure.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    findings: Sequence[str] = ()
    plot: Plot | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping in the JSON."""


def parser(text: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have.

    Args:
        text: the module's docstring.
        quick: what ``--quick`` does; such figures prove that the benchmark works and nothing else.
    """
    made = argparse.ArgumentParser(
        description=inspect.cleandoc(text or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", type=Path, metavar="FILE", help="write figures there, and a plot beside it")
    return made


def publish(report: Report, arguments: argparse.Namespace) -> None:
    """Print the table and the findings; write JSON and plot where ``--json`` says."""
    print(table(report))
    for finding in report.findings:
        print(finding)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "command": command(arguments.json),
            "at": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": machine(),
        }
        text = json.dumps(about | asdict(report), indent=1, ensure_ascii=False)
        arguments.json.write_text(text + "\n")
        if report.plot is not None:
            draw(report.plot, arguments.json.with_suffix(".svg"))


def table(report: Report) -> str:
    """The table, for people."""
    cells = [list(report.columns), *([shown(cell) for cell in row] for row in report.rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(report.columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def shown(cell: Cell) -> str:
    """A cell in words."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def command(path: Path) -> str:
    """How this run was started, as one would type it; without where its JSON went."""
    module = sys.modules["__main__"].__spec__
    name = module.name if module else sys.argv[0]
    options = [text for text in sys.argv[1:] if text not in ("--json", str(path))]
    return shlex.join(["python", "-m", name, *options])


def machine() -> dict[str, str]:
    """What a reader needs to judge the figures."""
    packages = {name: version(name) for name in _PACKAGES}
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **packages,
    }


def draw(plot: Plot, path: Path) -> None:
    """Write the plot as SVG."""
    import matplotlib

    matplotlib.use("svg")
    # The same figures give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "zimage", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    if plot.kind == "lines":
        for name, points in plot.series.items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=name)
    else:
        groups = list(dict.fromkeys(str(x) for points in plot.series.values() for x, _ in points))
        width = 0.8 / len(plot.series)
        for number, (name, points) in enumerate(plot.series.items()):
            places = [groups.index(str(x)) + (number - (len(plot.series) - 1) / 2) * width for x, _ in points]
            axes.bar(places, [y for _, y in points], width, label=name)
        axes.set_xticks(range(len(groups)), groups)
    if "x" in plot.log:
        axes.set_xscale("log")
    if "y" in plot.log:
        axes.set_yscale("log")
    if plot.line is not None:
        level, what = plot.line
        axes.axhline(level, color="grey", linestyle=":", label=what)
    axes.set(xlabel=plot.x, ylabel=plot.y)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.series) > 1 or plot.line is not None:
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
