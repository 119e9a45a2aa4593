"""The result of a request: its one terminal event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Status(StrEnum):
    """The final status of a request. UNKNOWN stands for a status that this version does not know."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"


class Code(StrEnum):
    """The reason why a request has no image; ``docs/wire.md`` gives the remedy for each."""

    UNDECODABLE = "UNDECODABLE"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    INVALID_REQUEST = "INVALID_REQUEST"
    UNSUPPORTED_SIZE = "UNSUPPORTED_SIZE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    GENERATION_FAILED = "GENERATION_FAILED"
    WORKER_CRASHED = "WORKER_CRASHED"
    STORE_REJECTED = "STORE_REJECTED"
    ID_CONFLICT = "ID_CONFLICT"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """An image in the store; ``sha256`` (hex) is that of the stored bytes."""

    uri: str
    url: str | None
    bucket: str
    key: str
    content_type: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    seed: int
    steps: int
    guidance_scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The reason why there is no image. ``retriable``: the same request may succeed if it is sent again."""

    code: str
    message: str
    retriable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Durations in milliseconds, never negative; ``None`` for a stage that was not reached.

    ``total_ms`` runs from the request's timestamp to just before the commit of its result.
    """

    queued_ms: float | None = None
    generate_ms: float | None = None
    encode_ms: float | None = None
    upload_ms: float | None = None
    total_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The location of a request's record."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """The one terminal event of a request. ``schemas/zimage.ImageResult`` documents every field."""

    request_id: str
    status: Status
    source: Source
    requested_at: datetime
    completed_at: datetime
    tenant: str = "default"
    batch_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 0
    image: StoredImage | None = None
    error: Failure | None = None
    timing: Timing = Timing()
    model: str = ""
    model_revision: str = ""
    worker: str = ""
    started_at: datetime | None = None

    @property
    def succeeded(self) -> bool:
        """Whether there is an image."""
        return self.status is Status.SUCCEEDED
