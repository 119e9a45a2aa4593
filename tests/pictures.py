"""Judges pictures of the packaged checkpoint by their pixels. It uses no learned model that could be fooled.

The background is the border's median colour. The shape is the set of pixels far from that colour, and its own
colour is their median. Its kind is that of the template it overlaps most, both scaled to their bounding
boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.tiny_checkpoint.shapes import RGB, mask
from zimage_stream.engines.tiny.captions import SHAPES

_BOX = 48
_VISIBLE = 60.0
"""Distance in RGB that separates the shape from noise in the background."""
_LEAST_SHARE = 0.02
_LEAST_PIXELS = 20

Bitmap = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture shows; ``None`` where there is no shape. ``overlap`` with its template is 0 to 1."""

    shape: str | None
    colour: str | None
    background: str
    overlap: float


def judge(image: Image.Image) -> Seen:
    """What a picture shows."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    back = _border_colour(pixels)
    background = _nearest(back)
    distance = np.linalg.norm(pixels - back, axis=2)
    if np.mean(distance > _VISIBLE) < _LEAST_SHARE:
        return Seen(None, None, background, 0.0)
    front = np.median(pixels[distance > 0.6 * np.percentile(distance, 99)], axis=0)
    covered = distance > 0.5 * np.linalg.norm(front - back)
    if covered.sum() < _LEAST_PIXELS:
        return Seen(None, _nearest(front), background, 0.0)
    found = _boxed(covered)
    overlap, shape = max((_overlap(found, _template(name)), name) for name in SHAPES)
    return Seen(shape, _nearest(front), background, overlap)


def _border_colour(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    edge = max(2, len(pixels) // 20)
    sides = (pixels[:edge], pixels[-edge:], pixels[:, :edge], pixels[:, -edge:])
    median: NDArray[np.float32] = np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)
    return median


def _nearest(rgb: NDArray[np.float32]) -> str:
    return min(RGB, key=lambda name: float(np.sum((np.array(RGB[name]) - rgb) ** 2)))


def _boxed(covered: Bitmap) -> Bitmap:
    rows, columns = np.nonzero(covered)
    crop = covered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    grey = Image.fromarray((crop * 255).astype(np.uint8))
    return np.asarray(grey.resize((_BOX, _BOX), Image.Resampling.BILINEAR)) > 127


@cache
def _template(shape: str) -> Bitmap:
    return _boxed(mask(shape, (50, 50), 36, 100) > 0.5)


def _overlap(one: Bitmap, other: Bitmap) -> float:
    return float((one & other).sum() / (one | other).sum())
