"""Progress: how far a request has come before its terminal event, as its worker reports it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from zimage_stream.events.image_result import Source

MAX_PREVIEW_BYTES = 32 << 10
MAX_PREVIEW_SIDE = 256
"""Maximum width and height of a preview, in pixels."""


class ProgressStage(StrEnum):
    """A step on a request's way. UNKNOWN stands for one that is newer than this reader."""

    STARTED = "STARTED"
    STEP = "STEP"
    GENERATED = "GENERATED"
    RETRYING = "RETRYING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a request has come. ``schemas/zimage.Progress`` documents every field.

    Progress may be lost, repeated or late; only the result tells how the request ended.
    """

    request_id: str
    source: Source
    stage: ProgressStage
    at: datetime
    tenant: str = "default"
    batch_id: str | None = None
    step: int = 0
    steps: int = 0
    worker: str = ""
    preview: bytes | None = None
