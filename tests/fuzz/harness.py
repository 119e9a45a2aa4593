"""Coverage-guided fuzzing with atheris, which is not a dependency of the project and is installed separately.

    pip install atheris
    python -m tests.fuzz.harness request --minutes 10

Inputs that reach new code are added to ``tests/fuzz/corpus/TARGET``; ``--merge`` minimizes a corpus.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["zimage_stream", "zimage_consumers", "zimage_producers"]):
    from tests.fuzz.targets import SEEDS, TARGETS

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 2_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument(
        "--merge",
        metavar="FOLDER",
        type=Path,
        help="add the inputs in FOLDER that reach new code to the corpus",
    )
    asked = parser.parse_args()
    kept = CORPUS / asked.target
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as seeds:
        for number, seed in enumerate(SEEDS[asked.target]):
            (Path(seeds) / str(number)).write_bytes(seed)
        words = [f"-max_len={MAX_BYTES}", "-timeout=10", "-rss_limit_mb=2048"]
        if asked.merge:
            words += ["-merge=1", str(kept), str(asked.merge)]
        else:
            words += [f"-max_total_time={round(60 * asked.minutes)}", str(kept), seeds]
        atheris.Setup([sys.argv[0], *words], TARGETS[asked.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
