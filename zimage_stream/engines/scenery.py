"""Synthetic scenery: an image of noise that is as hard to encode as a photograph.

Photographs have similar energy in every octave of detail, plus the grain of the sensor. Encoding and
transferring such noise takes as long as for a real photograph.
"""

from __future__ import annotations

import random
from functools import cache

from PIL import Image, ImageChops

SIDE = 2048
"""Width and height of the image, in pixels; a power of two."""
_COARSEST = 4
_AMPLITUDE = 60.0
"""Amplitude of the coarsest octave, in levels of 255."""
_FALL = 0.75
"""Amplitude of an octave relative to the previous one."""
_GRAIN = 2.5
_MIDDLE = 128


@cache
def scenery() -> Image.Image:
    """Create an RGB image of ``SIDE`` x ``SIDE`` pixels, always the same; this takes about a second once."""
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
    """Create uniform noise around the middle level."""
    raw = Image.frombytes("L", (side, side), rng.randbytes(side * side))
    return raw.point([round(_MIDDLE + (level - _MIDDLE) / _MIDDLE * amplitude) for level in range(256)])
