"""The request for one image, as an upstream system sends it."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
"""File extension of an image's key in the store, by image format."""
SEED_BITS = 53
"""Number of bits of a derived seed, so that JavaScript and spreadsheets can represent it exactly."""


def new_request_id() -> str:
    """Generate a UUIDv7 (RFC 9562): unique without coordination, and sortable by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return str(uuid.UUID(int=value))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """A request for one image. ``schemas/zimage.PromptRequest`` documents every field.

    ``tenant`` and ``request_id`` identify a request: sending it again makes no second image. The constructor
    checks nothing; :func:`~zimage_stream.events.rules.check_request` does, and ``PromptClient.submit``
    calls it.
    """

    prompt: str
    request_id: str = field(default_factory=new_request_id)
    tenant: str = "default"
    width: int = 1024
    height: int = 1024
    seed: int | None = None
    steps: int = 8
    guidance_scale: float = 0.0
    format: str = "png"
    quality: int | None = None
    priority: int = 0
    expires_at: datetime | None = None
    batch_id: str | None = None
    created_at: datetime | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    previews: int = 0

    @property
    def chosen_seed(self) -> int:
        """The requested seed, or one derived from tenant and id, so that a re-run makes the same image."""
        if self.seed is not None:
            return self.seed
        name = f"{self.tenant}/{self.request_id}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> (64 - SEED_BITS)

    @property
    def parameter_digest(self) -> str:
        """SHA-256 (hex) of the parameters that determine the image.

        Model, tenant and date are not included: after an upgrade between upload and commit, a worker must
        still recognise its own object. ``previews`` are not either: they change nothing about the image.
        """
        parameters = [
            self.prompt,
            self.width,
            self.height,
            self.chosen_seed,
            self.steps,
            float(self.guidance_scale),
            self.format,
            self.quality,
        ]
        return hashlib.sha256(json.dumps(parameters, ensure_ascii=True).encode()).hexdigest()

    @property
    def object_key(self) -> str:
        """Key of the image in the store, the same for every attempt and every resend."""
        return self._key(EXTENSIONS.get(self.format, self.format))

    @property
    def other_object_keys(self) -> tuple[str, ...]:
        """Keys that a request with this tenant and id would have in the other formats."""
        return tuple(self._key(extension) for name, extension in EXTENSIONS.items() if name != self.format)

    def _key(self, extension: str) -> str:
        return f"{self.tenant}/{self.request_id}.{extension}"
