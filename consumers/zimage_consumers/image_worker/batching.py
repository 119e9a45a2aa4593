"""Which requests may share a run of the engine, and how many."""

from __future__ import annotations

from dataclasses import dataclass

from zimage_stream.events.prompt_request import PromptRequest

TOKEN_BUCKET = 32
"""Captions are padded to the longest of their batch; within a bucket that padding costs nothing,
and attention kernels that take no mask stay usable."""
_FULL_PICTURE = 1024 * 1024
_BATCH_PIXELS = 2 * _FULL_PICTURE


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
    if pixels >= _FULL_PICTURE:
        return 1
    return max(1, min(max_batch, _BATCH_PIXELS // pixels))


def cost(request: PromptRequest) -> float:
    """Predicted work, in megapixel-steps: what fairness between tenants is measured in."""
    return request.width * request.height * request.steps / 1e6
