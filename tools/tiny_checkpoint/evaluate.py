"""Says how often a checkpoint draws what it was asked for, and shows some of it."""

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
    """Draw random captions, half of them Chinese; print the accuracy and save a contact sheet."""
    engine = create_engine(EngineSettings(model=str(folder), device="cpu", max_batch=BATCH))
    engine.load()
    rng = random.Random(99)
    asked = []
    for index in range(count):
        language: Language = "zh" if index % 2 else "en"
        combination = rng.choice(COMBINATIONS)
        text = caption(*combination, language, rng.randrange(variants(combination[0], language)))
        asked.append((combination, ImageSpec(text, SIDE, SIDE, STEPS, 0.0, index)))
    images = []
    for start in range(0, count, BATCH):
        images += engine.generate([spec for _, spec in asked[start : start + BATCH]])
    seen = [judge(image) for image in images]
    colours = sum(s.colour == c and s.background == b for s, ((_, c, b), _) in zip(seen, asked, strict=True))
    shapes = sum(s.shape == shape for s, ((shape, _, _), _) in zip(seen, asked, strict=True))
    whole = sum((s.shape, s.colour, s.background) == c for s, (c, _) in zip(seen, asked, strict=True))
    log.info("of %d: both colours %d, shape %d, all three %d", count, colours, shapes, whole)
    contact_sheet(images[:SHOWN], columns=8, cell=2 * SIDE).save(sheet)
