"""The judge of images in other tests recognizes what was drawn, and nothing else."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image

from tests.pictures import judge
from tools.tiny_checkpoint.shapes import render
from zimage_stream.engines.tiny.captions import COMBINATIONS


def test_all_combinations_are_distinguished() -> None:
    rng = random.Random(5)
    for combination in COMBINATIONS:
        seen = judge(Image.fromarray(render(*combination, rng).astype(np.uint8)))
        assert (seen.shape, seen.colour, seen.background) == combination
        assert seen.overlap > 0.85


def test_an_empty_image_shows_no_shape() -> None:
    seen = judge(Image.new("RGB", (64, 64), (220, 40, 40)))
    assert (seen.shape, seen.colour, seen.background) == (None, None, "red")
