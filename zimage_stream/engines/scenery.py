"""Pixels that are as hard to encode as a photograph's, made of nothing but noise.

Photographs have the same energy in every octave of detail, and the grain of a sensor on top. Encoders
and networks take as long for such noise as for the real thing.
"""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageChops

SIDE = 2048
"""Of the whole; a power of two."""
_COARSEST = 4
_AMPLITUDE = 60.0
"""Of the coarsest octave, in levels of 255."""
_FALL = 0.75
"""Amplitude of an octave against the one before it."""
_GRAIN = 2.5
_MIDDLE = 128


@cache
def scenery() -> Image.Image:
    """An RGB picture of ``SIDE`` pixels each way, always the same; made once, in about a second."""
    rng = random.Random(1)
    return Image.merge("RGB", [_channel(rng) for _ in range(3)])


def _channel(rng: random.Random) -> Image.Image:
    out = Image.new("L", (SIDE, SIDE), _MIDDLE)
    amplitude, side = _AMPLITUDE, _COARSEST
    while side <= SIDE:
        layer = _noise(rng, side, max(_GRAIN, amplitude)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        out = ImageChops.add(out, layer, 1.0, -_MIDDLE)
        amplitude, side = amplitude * _FALL, 2 * side
    return out


def _noise(rng: random.Random, side: int, amplitude: float) -> Image.Image:
    """Uniform noise about the middle."""
    raw = Image.frombytes("L", (side, side), rng.randbytes(side * side))
    return raw.point([round(_MIDDLE + (level - _MIDDLE) / _MIDDLE * amplitude) for level in range(256)])
