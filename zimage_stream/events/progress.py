"""Progress: what a worker reports about a request before its terminal event."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from zimage_stream.events.image_result import Source

MAX_PREVIEW_BYTES = 32 << 10
MAX_PREVIEW_SIDE = 256
"""Pixels."""


class ProgressStage(StrEnum):
    """How far a request has come. UNKNOWN stands for a stage newer than this reader."""

    STARTED = "STARTED"
    STEP = "STEP"
    GENERATED = "GENERATED"
    RETRYING = "RETRYING"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a request has come. ``schemas/zimage.Progress`` documents every field.

    Progress may be lost, repeated or late. Only the result says how the request ended.
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
