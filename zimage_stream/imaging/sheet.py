"""Contact sheets: many images on one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN, _LABEL = 8, 22


def contact_sheet(images: Sequence[Image.Image], columns: int = 6, cell: int = 160) -> Image.Image:
    """Arrange images in rows, numbered from 1 in reading order.

    The labels are numbers only, because the fonts available everywhere have no Chinese characters.

    Args:
        columns: number of images in a row.
        cell: longer side of each image on the sheet, in pixels.
    """
    rows = -(-len(images) // columns)
    sheet = Image.new(
        "RGB", (columns * (cell + _MARGIN) + _MARGIN, rows * (cell + _LABEL + _MARGIN) + _MARGIN), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for index, image in enumerate(images):
        left = _MARGIN + index % columns * (cell + _MARGIN)
        top = _MARGIN + index // columns * (cell + _LABEL + _MARGIN)
        scale = cell / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + cell + 2), str(index + 1), fill="black", font=font)
    return sheet
