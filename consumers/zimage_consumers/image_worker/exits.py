"""Exit codes of a worker process."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code of a worker process, for the supervisor and the init system."""

    DONE = 0
    FAILED = 1
    SICK = 70
    CONTEXT_LOST = 71
    FENCED = 72
    HUNG = 73
    LEAKED = 74
