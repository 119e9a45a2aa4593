"""How a worker process ends."""

from __future__ import annotations

from enum import IntEnum

from zimage_consumers.image_worker.jobs import EngineLost
from zimage_stream.errors import ZImageError


class ExitCode(IntEnum):
    """What the process says when it ends; the supervisor and an init system read it."""

    DONE = 0
    FAILED = 1
    SICK = 70
    CONTEXT_LOST = 71
    FENCED = 72
    HUNG = 73
    LEAKED = 74


class EngineLostError(ZImageError):
    """The engine cannot go on in this process."""

    def __init__(self, lost: EngineLost) -> None:
        self.sick = lost.sick
        super().__init__(str(lost.error))


class EngineHungError(ZImageError):
    """A batch takes far longer than one of its shape can."""
