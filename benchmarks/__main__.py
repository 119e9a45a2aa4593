"""Run benchmarks one after the other, and make docs/benchmarks.md of their figures.

python -m tests.services run --no-registry -- python -m benchmarks                  # all of them
python -m tests.services run --no-registry -- python -m benchmarks fairness peers
python -m tests.services run --no-registry -- python -m benchmarks --quick          # do they work?
"""

from __future__ import annotations

import argparse
import inspect
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import page

SIDE_BY_SIDE = 3
"""Small ones at once: they mostly wait, and nobody reads their figures."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=inspect.cleandoc(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(page.TITLES)}; absent: all")
    parser.add_argument(
        "--quick", action="store_true", help="small ones, some at once; their figures are not kept"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - page.TITLES.keys()
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(page.TITLES)}")
    names = arguments.names or list(page.TITLES)
    if arguments.quick:
        run_small_ones(names)
        return
    for name in names:
        print(f"\n== {name}", flush=True)
        run(name, page.FOLDER)
    page.main()


def run(name: str, folder: Path) -> None:
    """Run one; its figures go into the folder. Raises SystemExit where it fails."""
    started = time.monotonic()
    done = subprocess.run(command(name, folder), check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.{name} failed")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


def run_small_ones(names: Sequence[str]) -> None:
    """Run the small forms, some at once, and show each when it has ended. SystemExit where one fails."""
    failed = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running = {pool.submit(run_small_one, name, Path(folder)): name for name in names}
        for each in as_completed(running):
            code, said, took_s = each.result()
            print(f"\n== {running[each]}\n{said}({took_s:.0f} s)", flush=True)
            failed += [running[each]] if code else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run_small_one(name: str, folder: Path) -> tuple[int, str, float]:
    """Its exit code, what it printed, and how many seconds it took."""
    started = time.monotonic()
    done = subprocess.run(
        [*command(name, folder), "--quick"],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout, time.monotonic() - started


def command(name: str, folder: Path) -> list[str]:
    """What runs one and writes its figures into the folder."""
    return [sys.executable, "-m", f"benchmarks.{name}", "--json", str(folder / f"{name}.json")]


if __name__ == "__main__":
    main()
