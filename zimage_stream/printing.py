"""Results as people and programs read them on a terminal."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

from zimage_stream.events.image_result import ImageResult


def result_as_dict(result: ImageResult) -> dict[str, Any]:
    """Every field under its own name, nested as in the event; times in ISO 8601."""
    return {name: _plain(value) for name, value in dataclasses.asdict(result).items()}


def result_as_line(result: ImageResult) -> str:
    """Status, id, and where the picture is or why there is none."""
    if result.image is not None:
        what = result.image.url or result.image.uri
    else:
        what = f"{result.error.code}: {result.error.message}" if result.error else ""
    return f"{result.status:<9} {result.request_id}  {what}".rstrip()


def as_json(record: dict[str, Any]) -> str:
    """One line."""
    return json.dumps(record, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds") if isinstance(value, datetime) else value
