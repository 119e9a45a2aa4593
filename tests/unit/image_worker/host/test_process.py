"""What a worker's process does in addition to running its worker."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from zimage_consumers.image_worker.host.process import keep_buffers
if sys.argv[1] == "kept":
    keep_buffers()
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# The first round warms up what is new to both.
for _ in range(2):
    before = pages()
    for _ in range(20):
        small, large = bytearray(b"x" * (3 << 20)), bytearray(b"x" * (12 << 20))
        del small, large
print(pages() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_buffers_are_kept_for_the_next_image() -> None:
    new, kept = (
        int(subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True).stdout)
        for how in ("new", "kept")
    )
    assert kept < new / 10
