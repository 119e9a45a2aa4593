"""How a worker process ends."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says when it ends; the supervisor and an init system read it."""

    DONE = 0
    FAILED = 1
    SICK = 70
    CONTEXT_LOST = 71
    FENCED = 72
    HUNG = 73
    LEAKED = 74
