"""Measures how often a checkpoint draws what the prompt describes, and saves a few examples."""

from __future__ import annotations

import logging
import random
from pathlib import Path

from tests.pictures import judge
from zimage_stream.engines import ImageSpec, create_engine
from zimage_stream.engines.tiny.captions import COMBINATIONS, Language, caption, variants
from zimage_stream.imaging import contact_sheet
from zimage_stream.settings import EngineSettings

log = logging.getLogger(__name__)

SIDE, STEPS = 64, 8
BATCH = 8
SHOWN = 48


def evaluate(folder: Path, count: int, sheet: Path) -> None:
    """Draw random captions, half of them Chinese; log the accuracy and save a contact sheet."""
    engine = create_engine(EngineSettings(model=str(folder), device="cpu", max_batch=BATCH))
    engine.load()
    rng = random.Random(99)
    expected = []
    for index in range(count):
        language: Language = "zh" if index % 2 else "en"
        combination = rng.choice(COMBINATIONS)
        text = caption(*combination, language, rng.randrange(variants(combination[0], language)))
        expected.append((combination, ImageSpec(text, SIDE, SIDE, STEPS, 0.0, index)))
    images = []
    for start in range(0, count, BATCH):
        images += engine.generate([spec for _, spec in expected[start : start + BATCH]])
    pairs = [(judge(image), combination) for image, (combination, _) in zip(images, expected, strict=True)]
    colours = sum(seen.colour == colour and seen.background == back for seen, (_, colour, back) in pairs)
    shapes = sum(seen.shape == shape for seen, (shape, _, _) in pairs)
    whole = sum((seen.shape, seen.colour, seen.background) == each for seen, each in pairs)
    log.info("of %d: both colours %d, shape %d, all three %d", count, colours, shapes, whole)
    contact_sheet(images[:SHOWN], columns=8, cell=2 * SIDE).save(sheet)
