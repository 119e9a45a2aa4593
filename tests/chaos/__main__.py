"""The fault suite's command line: ``python -m tests.chaos --help``."""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from tests.chaos.run import SCENARIOS, open_services, play
from tests.chaos.stage import Row
from tests.chaos.tables import write_table
from tests.chaos.workloads import WORKLOADS

HEAD = f"{'scenario':<34}{'faults':>7}{'accepted':>9}  {'recovery s':>12}  verdict"
PLAYED_OVER_ALL = ("killed at every point", "killed at random", "broker killed", "cancelled at every stage")
"""Scenarios that are run with every workload."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="scenarios with this in their name")
    parser.add_argument("--workload", choices=WORKLOADS, default="steady", help="for --only")
    parser.add_argument("--scale", type=float, default=2.0, help="how much longer than the short form")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="random scenarios for this long")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--page", type=Path, help="also write the table to this page")
    parser.add_argument("--keep", type=Path, help="keep all logs in this folder")
    options = parser.parse_args()
    # A signal from outside must not leave workers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.stdout.write(f"seed {options.seed}\n\n{HEAD}\n")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        with open_services(folder) as services:
            for number, (scenario, workload) in enumerate(_plan(options)):
                here = folder / f"{number:03}"
                try:
                    row = play(services, scenario, workload, here, options.seed + number, options.scale)
                except Exception as error:
                    broke = {"runs that broke off": [f"{type(error).__name__}: {error}"]}
                    row = Row(scenario, 0, 0, {}, [], broke)
                    sys.stdout.writelines(f"{note}\n" for note in getattr(error, "__notes__", ()))
                    services.reset()
                rows.append(row)
                sys.stdout.write(f"{row}\n")
                sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + "\n")
    if options.page:
        write_table(options.page, "soak" if options.soak else "scenarios", as_markdown(rows, options.seed))
    faults, accepted = sum(row.faults for row in rows), sum(row.accepted for row in rows)
    bad = [row for row in rows if row.problems]
    sys.stdout.write(f"\n{len(rows)} runs, {faults} faults, {accepted} requests, {len(bad)} with problems\n")
    return 1 if bad else 0


def as_markdown(rows: Sequence[Row], seed: int) -> str:
    """The rows as a table, with totals above it."""
    faults, accepted = sum(row.faults for row in rows), sum(row.accepted for row in rows)
    bad = sum(bool(row.problems) for row in rows)
    lines = [
        f"Seed {seed}: {len(rows)} runs, {faults} faults, {accepted:,} requests, {bad} runs with problems.",
        "",
        "| scenario | faults | requests | recovery p50, s | max, s | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = (
            [f"{median(row.recoveries):.1f}", f"{max(row.recoveries):.1f}"] if row.recoveries else ["", ""]
        )
        cells = [row.name, str(row.faults), str(row.accepted), *times, row.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _plan(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The runs to play, in order: the run without faults first."""
    if options.only is not None:
        yield from ((name, options.workload) for name in SCENARIOS if options.only in name)
    elif options.soak is not None:
        rng = random.Random(options.seed)
        until = time.monotonic() + options.soak * 60
        while time.monotonic() < until:
            yield rng.choice(list(SCENARIOS)), rng.choice(list(WORKLOADS))
    else:
        yield from ((name, "steady") for name in SCENARIOS)
        for workload in WORKLOADS:
            if workload != "steady":
                yield from ((name, workload) for name in PLAYED_OVER_ALL)


if __name__ == "__main__":
    sys.exit(main())
