"""``zimage`` as a user types it: the types of what ``conftest.py`` gives to tests of commands."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

DEADLINE_S = 240.0

Run = Callable[..., subprocess.CompletedProcess[str]]
"""Runs ``zimage`` with these words, and ``stdin=`` this text, to its end."""
Start = Callable[..., subprocess.Popen[str]]
"""Starts ``zimage`` with these words."""
