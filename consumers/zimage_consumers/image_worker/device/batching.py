"""Which requests may share a run of the engine, and how many."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from zimage_stream.events.prompt_request import PromptRequest

TOKEN_BUCKET = 32
"""Captions are padded to the longest of their batch; within a bucket that padding costs nothing,
and attention kernels that take no mask stay usable."""
_FULL_IMAGE = 1024 * 1024
_BATCH_PIXELS = 2 * _FULL_IMAGE
GROW_AFTER = 64
"""Batches in a row that must fit before a larger one is tried again."""

BATCHES_AHEAD = 2
"""One on the engine and one on deck: the engine never waits, and a late comer waits for no more."""
MARK_COMMITS_AHEAD = 3
MAX_IMAGES_AHEAD = 64
"""Pictures; they are suspects together if the process dies."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Requests of equal shape may run together."""

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
    """How many pictures of a size run together at most.

    A 1024x1024 picture fills the device by itself: a batch would only make everybody wait. Eight of
    512x512 run up to three times as fast as one by one.
    """
    pixels = width * height
    if pixels >= _FULL_IMAGE:
        return 1
    return max(1, min(max_batch, _BATCH_PIXELS // pixels))


def deck_has_room(batches: int, pictures: int, image_s: float, commit_marks_s: float) -> bool:
    """Whether another batch is to be put on deck. Pure.

    Two are enough for a device that takes longer for a batch than a commit of marks takes. One that does not
    would wait for each commit: it gets what it can do in a few of them.

    Args:
        batches, pictures: on the engine and on deck.
        image_s: what a picture takes; 0 where that is not known yet.
        commit_marks_s: what a commit of marks takes.
    """
    if batches < BATCHES_AHEAD:
        return True
    return pictures < MAX_IMAGES_AHEAD and 0 < pictures * image_s < MARK_COMMITS_AHEAD * commit_marks_s


class BatchLimits:
    """The largest batch of each size, as far as the device's memory has taught. Thread-safe.

    What did not fit is remembered for as long as the process lives, and tried again slowly: other
    programs may have left the device.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._lock = threading.Lock()
        self._learnt: dict[tuple[int, int], int] = {}
        self._fitted: dict[tuple[int, int], int] = {}

    def largest(self, width: int, height: int) -> int:
        """How many pictures of this size to run together at most."""
        most = largest_batch(width, height, self._max_batch)
        with self._lock:
            return min(most, self._learnt.get((width, height), most))

    def did_not_fit(self, width: int, height: int, size: int) -> int:
        """A batch of more than one ran out of memory; returns the largest to try now."""
        with self._lock:
            self._fitted[width, height] = 0
            learnt = min(size // 2, self._learnt.get((width, height), size))
            self._learnt[width, height] = max(1, learnt)
            return self._learnt[width, height]

    def fitted(self, width: int, height: int, size: int) -> None:
        """A batch did fit."""
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
    """Predicted work, in megapixel-steps: what fairness between tenants is measured in."""
    return request.width * request.height * request.steps / 1e6
