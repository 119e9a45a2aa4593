"""``zimage`` as a user runs it: types of the fixtures in ``conftest.py`` for tests of commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

DEADLINE_S = 240.0

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs ``zimage`` with these arguments, and ``stdin=`` this text, until it ends."""
Start = Callable[..., subprocess.Popen[str]]
"""Starts ``zimage`` with these arguments."""
