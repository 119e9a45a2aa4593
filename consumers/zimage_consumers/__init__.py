"""The consumers: the image worker, and readers of results and dead letters.

Only :func:`run_worker` is public; the rest of this package may change without notice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zimage_consumers.image_worker.host.process import run_worker

__all__ = ["run_worker"]


def __getattr__(name: str) -> Any:
    # Imported at first use: the other commands of this package load no worker.
    if name != "run_worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from zimage_consumers.image_worker.host.process import run_worker

    return run_worker
