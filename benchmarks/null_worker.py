"""This project's worker where the work is nothing: ``python -m benchmarks.null_worker``, by the settings.

The engine has its picture already and the store keeps what it is given in memory; everything between
them is the worker's own: what it costs by itself, and what other systems' null work is compared with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from PIL import Image

from zimage_consumers import run_worker
from zimage_stream import ImageSpec, Put, StoredObject, load_settings


class NullEngine:
    """Takes no time."""

    model, model_revision = "null", ""

    def load(self) -> None: ...
    def close(self) -> None: ...
    def idle(self) -> None: ...

    def count_tokens(self, prompt: str) -> int | None:
        return None

    def device_memory(self) -> Mapping[str, int]:
        return {}

    def generate(
        self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = lambda: False
    ) -> list[Image.Image]:
        return [_blank(spec.width, spec.height) for spec in specs]


@cache
def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


class MemoryStore:
    """Written once, like any other."""

    bucket = ""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}

    def check(self) -> None: ...
    def create(self) -> None: ...
    def probe(self) -> None: ...
    def close(self) -> None: ...

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str]) -> Put:
        new = StoredObject(key, len(data), content_type, dict(metadata))
        with self._lock:
            kept, _ = self._objects.setdefault(key, (new, data))
        return Put(kept, created=kept is new)

    def stat(self, key: str) -> StoredObject | None:
        kept = self._objects.get(key)
        return kept[0] if kept else None

    def get(self, key: str) -> bytes:
        return self._objects[key][1]

    def uri(self, key: str) -> str:
        return f"memory:{key}"


def main() -> None:
    run_worker(load_settings(), "null", engine=NullEngine(), store=MemoryStore())


if __name__ == "__main__":
    main()
