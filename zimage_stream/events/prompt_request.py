"""What an upstream system asks for."""

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
"""Of the key that a picture is kept under, by its format."""
SEED_BITS = 53
"""Derived seeds stay exact in JavaScript numbers and in spreadsheets."""


def new_request_id() -> str:
    """A UUIDv7 (RFC 9562): unique without asking anybody, and sorted by time."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return str(uuid.UUID(int=value))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """One picture to make. ``schemas/zimage.PromptRequest`` documents every field.

    A request is known by ``tenant`` and ``request_id``: sending it again makes no second picture.
    Creating one checks nothing; :func:`~zimage_stream.events.rules.check_request` does, and
    ``PromptClient.submit`` calls it.
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

    @property
    def chosen_seed(self) -> int:
        """The seed asked for, else one of tenant and id, so that a re-run makes the same picture."""
        if self.seed is not None:
            return self.seed
        name = f"{self.tenant}/{self.request_id}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> (64 - SEED_BITS)

    @property
    def parameter_digest(self) -> str:
        """SHA-256 (hex) of what determines the picture.

        Neither model nor tenant nor date is in it: an upgrade between upload and commit must not
        turn a worker's own object into somebody else's.
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
        """Where the picture is kept, the same for every attempt and every resend."""
        return self._key(EXTENSIONS.get(self.format, self.format))

    @property
    def other_object_keys(self) -> tuple[str, ...]:
        """Where the picture of a request with this id is kept that asked for another format."""
        return tuple(self._key(extension) for name, extension in EXTENSIONS.items() if name != self.format)

    def _key(self, extension: str) -> str:
        return f"{self.tenant}/{self.request_id}.{extension}"
