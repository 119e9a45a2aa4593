"""The packaged checkpoint draws what it is prompted for, through the engine that a worker uses."""

from __future__ import annotations

import random

import pytest

from tests.pictures import judge
from zimage_stream.engines import ImageSpec, create_engine
from zimage_stream.engines.tiny.captions import COMBINATIONS, Language, caption, variants
from zimage_stream.settings import EngineSettings

BATCH = 8
LEAST_RIGHT = 0.98


@pytest.mark.parametrize("count", [64, pytest.param(512, marks=pytest.mark.slow)])
def test_images_show_what_their_captions_say(count: int) -> None:
    rng = random.Random(2026)
    asked = []
    for index in range(count):
        language: Language = "zh" if index % 2 else "en"
        combination = rng.choice(COMBINATIONS)
        text = caption(*combination, language, rng.randrange(variants(combination[0], language)))
        asked.append((combination, ImageSpec(text, 64, 64, 8, 0.0, rng.getrandbits(53))))
    engine = create_engine(EngineSettings(model="tiny", device="cpu"))
    engine.load()
    wrong = []
    for start in range(0, count, BATCH):
        batch = asked[start : start + BATCH]
        images = engine.generate([spec for _, spec in batch])
        for (combination, spec), image in zip(batch, images, strict=True):
            seen = judge(image)
            if (seen.shape, seen.colour, seen.background) != combination:
                wrong.append((spec.prompt, seen))
    engine.close()
    assert len(wrong) <= (1 - LEAST_RIGHT) * count, wrong
