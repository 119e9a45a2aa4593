"""Exit codes of a worker process."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit code of a worker process, for the supervisor and the init system."""

    DONE = 0
    FAILED = 1
    """It could not start, or was stopped while Kafka was unreachable."""
    SICK = 70
    """The device cannot make the known-good image."""
    CONTEXT_LOST = 71
    """The device context is lost, or the engine's thread failed."""
    FENCED = 72
    """Another process uses the same slot."""
    HUNG = 73
    """A batch hung."""
    LEAKED = 74
    """The device's memory leaks."""
