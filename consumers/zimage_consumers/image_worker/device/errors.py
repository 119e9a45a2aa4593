"""Errors after which the engine cannot continue in this process."""

from __future__ import annotations

from zimage_consumers.image_worker.window.jobs import EngineLost
from zimage_stream.errors import ZImageError


class EngineLostError(ZImageError):
    """The engine cannot continue in this process."""

    def __init__(self, lost: EngineLost) -> None:
        self.sick = lost.sick
        super().__init__(str(lost.error))


class EngineHungError(ZImageError):
    """A batch takes far longer than a batch of its shape should."""
