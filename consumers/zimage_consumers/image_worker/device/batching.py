"""Decides which requests may share a run of the engine, and how many."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from zimage_stream.events.prompt_request import PromptRequest

TOKEN_BUCKET = 32
"""Captions are padded to the longest of their batch; within a bucket that padding costs nothing, and
attention kernels without mask support stay usable."""
_FULL_IMAGE = 1024 * 1024
_BATCH_PIXELS = 2 * _FULL_IMAGE
GROW_AFTER = 64
"""Consecutive batches that must fit before a larger one is tried again."""

BATCHES_AHEAD = 2
"""One on the engine and one on deck: the engine never waits, and a late arrival waits only for these."""
MARK_COMMITS_AHEAD = 3
MAX_IMAGES_AHEAD = 64
"""Largest number of images ahead; all of them become suspects if the process dies."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What requests must have in common to run in one batch."""

    width: int
    height: int
    steps: int
    guidance_scale: float
    token_bucket: int


def shape_of(request: PromptRequest, tokens: int) -> Shape:
    """The shape of a request whose prompt is ``tokens`` long."""
    return Shape(
        request.width,
        request.height,
        request.steps,
        float(request.guidance_scale),
        -(-tokens // TOKEN_BUCKET),
    )


def largest_batch(width: int, height: int, max_batch: int) -> int:
    """Largest number of images of a size to run together.

    A single 1024x1024 image fills the device: a batch would only make every request wait. Eight 512x512
    images run up to three times as fast as one at a time.
    """
    pixels = width * height
    if pixels >= _FULL_IMAGE:
        return 1
    return max(1, min(max_batch, _BATCH_PIXELS // pixels))


def deck_has_room(batches: int, images: int, image_s: float, commit_marks_s: float) -> bool:
    """Whether another batch should be put on deck. Pure.

    Two batches are enough for a device that takes longer over a batch than a commit of marks takes. A faster
    device would wait for every commit, so it gets as much work as it can do in a few commits.

    Args:
        batches, images: number on the engine and on deck.
        image_s: seconds per image; 0 while unknown.
        commit_marks_s: seconds per commit of marks.
    """
    if batches < BATCHES_AHEAD:
        return True
    return images < MAX_IMAGES_AHEAD and 0 < images * image_s < MARK_COMMITS_AHEAD * commit_marks_s


class BatchLimits:
    """Largest batch of each size, as learnt from running out of the device's memory. Thread-safe.

    A batch size that did not fit is remembered as long as the process lives, and retried only slowly: other
    programs may have left the device.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._learnt: dict[tuple[int, int], int] = {}
        self._fitted: dict[tuple[int, int], int] = {}

    def largest(self, width: int, height: int) -> int:
        """Largest number of images of this size to run together now."""
        most = largest_batch(width, height, self._max_batch)
        with self._lock:
            return min(most, self._learnt.get((width, height), most))

    def did_not_fit(self, width: int, height: int, size: int) -> int:
        """Record that a batch of more than one ran out of memory. Returns the largest to try now."""
        with self._lock:
            self._fitted[width, height] = 0
            learnt = min(size // 2, self._learnt.get((width, height), size))
            self._learnt[width, height] = max(1, learnt)
            return self._learnt[width, height]

    def fitted(self, width: int, height: int, size: int) -> None:
        """Record that a batch fitted."""
        key = width, height
        with self._lock:
            if size < self._learnt.get(key, size + 1):
                return
            self._fitted[key] += 1
            if self._fitted[key] >= GROW_AFTER:
                self._fitted[key] = 0
                self._learnt[key] += 1
                if self._learnt[key] >= largest_batch(width, height, self._max_batch):
                    del self._learnt[key], self._fitted[key]


def cost(request: PromptRequest) -> float:
    """Predicted work in megapixel-steps, the measure of fairness between tenants."""
    return request.width * request.height * request.steps / 1e6
