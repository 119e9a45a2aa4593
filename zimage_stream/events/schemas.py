"""The published Avro schemas, in all versions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

from zimage_stream.errors import ZImageError

PROMPT_REQUEST = "zimage.PromptRequest"
IMAGE_RESULT = "zimage.ImageResult"
CANCELLATION = "zimage.Cancellation"
PROGRESS = "zimage.Progress"

_FILE = re.compile(r"(?P<name>zimage\.\w+)\.v(?P<version>\d+)\.avsc")


@dataclass(frozen=True, slots=True)
class Schema:
    """One published version of a schema.

    Attributes:
        name: full Avro name.
        text: the file as published.
        parsed: the schema, parsed by fastavro.
        fingerprint: CRC-64-AVRO of the canonical form, little endian, as on the wire.
    """

    name: str
    version: int
    text: str
    parsed: Any
    fingerprint: bytes


@lru_cache(maxsize=1)
def published() -> dict[str, tuple[Schema, ...]]:
    """Every published schema by name, oldest first."""
    found: dict[str, list[Schema]] = {}
    for file in _folder().iterdir():
        named = _FILE.fullmatch(file.name)
        if named:
            text = file.read_text(encoding="utf-8")
            found.setdefault(named["name"], []).append(_load(named["name"], int(named["version"]), text))
    return {name: tuple(sorted(versions, key=lambda s: s.version)) for name, versions in found.items()}


def current(name: str) -> Schema:
    """The latest version of an event's schema."""
    return published()[name][-1]


@lru_cache(maxsize=1)
def by_fingerprint() -> dict[bytes, Schema]:
    """Every published schema by its fingerprint."""
    return {schema.fingerprint: schema for versions in published().values() for schema in versions}


def _load(name: str, version: int, text: str) -> Schema:
    raw = json.loads(text)
    code = fingerprint(to_parsing_canonical_form(raw), "CRC-64-AVRO")
    # fastavro returns the hex form of the little-endian bytes on the wire.
    return Schema(name, version, text, parse_schema(raw), bytes.fromhex(code))


def _folder() -> Traversable:
    packaged = files("zimage_stream") / "schemas"
    if packaged.is_dir():
        return packaged
    checkout = files("zimage_stream") / ".." / "schemas"
    if checkout.is_dir():
        return checkout
    raise ZImageError("the Avro schemas are missing from this installation")


__all__ = [
    "CANCELLATION",
    "IMAGE_RESULT",
    "PROGRESS",
    "PROMPT_REQUEST",
    "Schema",
    "by_fingerprint",
    "current",
    "published",
]
