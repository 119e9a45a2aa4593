"""The mutants of the fault suite are patches. One that no longer applies breaks nothing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATCHES = sorted((ROOT / "tests" / "chaos" / "mutants").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_it_applies_and_names_what_catches_it(patch: Path) -> None:
    text = patch.read_text()
    assert text.startswith("Breaks: ")
    caught_by = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("Caught-by: ")]
    assert caught_by
    for test in caught_by:
        if not test.startswith("chaos:"):
            path, *names = test.split("::")
            source = (ROOT / path).read_text()
            assert all(re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE) for name in names), test
    done = subprocess.run(
        ["git", "apply", "--check", str(patch)], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
