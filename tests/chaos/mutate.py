"""Does the suite catch a broken product? Breaks one mechanism at a time and runs the tests that should fail.

    python -m tests.chaos.mutate               # all of tests/chaos/mutants
    python -m tests.chaos.mutate --only mark

A mutant is a patch. Its first lines state what it breaks and which tests should catch it, cheapest first; a
scenario of the fault suite is named by ``chaos:``. The patch is applied to a copy of this repository. A
mutant that survives is a hole in the suite, and sets the exit code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.tables import write_table

ROOT = Path(__file__).parents[2]
MUTANTS = Path(__file__).parent / "mutants"
TIMEOUT_S = 900


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants whose file name contains this")
    parser.add_argument("--page", type=Path, help="also write the table to this page")
    options = parser.parse_args()
    survivors = 0
    lines = ["| mechanism broken | caught by |", "|---|---|"]
    for patch in sorted(file for file in MUTANTS.glob("*.patch") if options.only in file.stem):
        text = patch.read_text()
        (broken,) = re.findall(r"^Breaks: (.+)$", text, re.MULTILINE)
        caught = try_out(patch, re.findall(r"^Caught-by: (.+)$", text, re.MULTILINE))
        survivors += caught is None
        lines.append(f"| {broken} | {f'`{caught}`' if caught else 'NOTHING'} |")
        sys.stdout.write(f"{lines[-1]}\n")
        sys.stdout.flush()
    if options.page:
        write_table(options.page, "mutants", "\n".join(lines))
    return 1 if survivors else 0


def try_out(patch: Path, tests: list[str]) -> str | None:
    """The first of these tests that fails under the patch; ``None`` if it survives all of them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "dist")
        shutil.copytree(ROOT, copy, ignore=ignored)
        subprocess.run(["git", "apply", str(patch)], cwd=copy, check=True)
        return next((test for test in tests if is_red(copy, test)), None)


def is_red(copy: Path, test: str) -> bool:
    """Whether a test, or a scenario of the fault suite, fails in this copy of the repository."""
    scenario = test.removeprefix("chaos:")
    command = (
        ["-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider", test]
        if scenario == test
        else ["-m", "tests.chaos", "--scale", "1", "--seed", "1", "--only", scenario]
    )
    paths = os.pathsep.join(str(copy / part) for part in ("", "consumers", "producers"))
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": paths, "CI": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main())
