"""Contact sheets: every image is at its place, with its number below."""

from __future__ import annotations

import pytest
from PIL import Image, ImageColor

from zimage_stream.imaging import contact_sheet

COLOURS = ("red", "lime", "blue", "magenta", "cyan", "orange", "purple")
CELL = 40


def places(sheet: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """The bounding box of a colour."""
    rgb = ImageColor.getrgb(colour)
    xy = [(x, y) for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == rgb]
    xs, ys = [x for x, _ in xy], [y for _, y in xy]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def test_images_are_in_reading_order_and_numbered() -> None:
    sheet = contact_sheet([Image.new("RGB", (64, 64), colour) for colour in COLOURS], columns=3, cell=CELL)
    boxes = [places(sheet, colour) for colour in COLOURS]
    assert all((right - left, bottom - top) == (CELL, CELL) for left, top, right, bottom in boxes)
    lefts, tops = [box[0] for box in boxes], [box[1] for box in boxes]
    assert lefts == [lefts[i % 3] for i in range(7)]
    assert lefts[0] < lefts[1] < lefts[2]
    assert tops == [tops[i // 3 * 3] for i in range(7)]
    assert tops[0] < tops[3] < tops[6]
    labels = [sheet.crop((left, bottom, left + CELL, bottom + 20)).tobytes() for left, _, _, bottom in boxes]
    assert len(set(labels)) == 7


@pytest.mark.parametrize("size", [(64, 16), (16, 64), (2048, 16)])
def test_an_image_keeps_its_proportions(size: tuple[int, int]) -> None:
    sheet = contact_sheet([Image.new("RGB", size, "red")], columns=1, cell=CELL)
    left, top, right, bottom = places(sheet, "red")
    scale = CELL / max(size)
    assert (right - left, bottom - top) == (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))


def test_an_image_in_another_mode_is_shown() -> None:
    sheet = contact_sheet([Image.new("L", (8, 8), 128)], columns=1, cell=CELL)
    assert sheet.getpixel((20, 20)) == (128, 128, 128)
