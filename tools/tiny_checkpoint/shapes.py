"""Renders captions, for training data and for the templates against which images are judged."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 64
RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (220, 40, 40),
        "green": (40, 160, 60),
        "blue": (40, 80, 220),
        "yellow": (245, 220, 50),
        "orange": (245, 140, 30),
        "purple": (140, 50, 180),
        "black": (20, 20, 20),
        "white": (245, 245, 245),
    }
)
_OVERSAMPLING = 4
_RADII = (0.28, 0.36)
_SHIFT = 0.035
_TINT = 6.0

Point = tuple[float, float]


def outline(shape: str) -> list[Point]:
    """Return the corners of a shape within the unit circle (slightly beyond it for the star), y downwards.

    Raises KeyError for a shape that does not occur in captions.
    """
    return _OUTLINES[shape]


def mask(shape: str, centre: Point, radius: float, side: int) -> NDArray[np.float32]:
    """Return the coverage of each pixel by the shape, 0 to 1, as [side, side]; lengths are in pixels."""
    scale = _OVERSAMPLING
    canvas = Image.new("L", (side * scale, side * scale), 0)
    corners = [
        ((centre[0] + x * radius) * scale, (centre[1] + y * radius) * scale) for x, y in outline(shape)
    ]
    ImageDraw.Draw(canvas).polygon(corners, fill=255)
    covered: NDArray[np.float32] = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32)
    return covered / np.float32(255)


def render(
    shape: str, colour: str, background: str, rng: random.Random, side: int = SIDE
) -> NDArray[np.float32]:
    """Render an image as [side, side, 3], 0 to 255; position, size and tints vary slightly with ``rng``."""
    radius = side * rng.uniform(*_RADII)
    shift = side * _SHIFT
    centre = (side / 2 + rng.uniform(-shift, shift), side / 2 + rng.uniform(-shift, shift))
    covered = mask(shape, centre, radius, side)[..., None]
    front, back = (
        np.clip(np.array(RGB[name], np.float32) + rng.uniform(-_TINT, _TINT), 0, 255)
        for name in (colour, background)
    )
    image: NDArray[np.float32] = covered * front + (1 - covered) * back
    return image


def _circle() -> list[Point]:
    return [(math.cos(math.tau * i / 90), math.sin(math.tau * i / 90)) for i in range(90)]


def _star() -> list[Point]:
    radii = [1.1 if i % 2 == 0 else 0.46 for i in range(10)]
    return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]


def _cross() -> list[Point]:
    arm = 0.36
    quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    corners = list(quarter)
    for _ in range(3):
        quarter = [(-y, x) for x, y in quarter]
        corners += quarter
    return corners


def _heart() -> list[Point]:
    corners = []
    for i in range(60):
        t = math.tau * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((x / 16, -y / 16))
    return corners


_OUTLINES: Mapping[str, list[Point]] = {
    "circle": _circle(),
    "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
    "triangle": [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
}
