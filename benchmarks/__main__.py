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
from pathlib import Path

from benchmarks import page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=inspect.cleandoc(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(page.TITLES)}; absent: all")
    parser.add_argument("--quick", action="store_true", help="small ones; their figures are not kept")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - page.TITLES.keys()
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(page.TITLES)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names or page.TITLES:
            run(name, Path(folder) if arguments.quick else page.FOLDER, arguments.quick)
    if not arguments.quick:
        page.main()


def run(name: str, folder: Path, quick: bool) -> None:
    """Run one; its figures go into the folder. Raises SystemExit where it fails."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    options = ["--json", str(folder / f"{name}.json"), *(["--quick"] if quick else [])]
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False)
    if done.returncode:
        raise SystemExit(f"benchmarks.{name} failed")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
