"""Previews: small JPEGs of images that are being generated."""

from __future__ import annotations

import io

from PIL.Image import Image, Resampling

from zimage_stream.events.progress import MAX_PREVIEW_BYTES, MAX_PREVIEW_SIDE

_QUALITIES = (85, 70, 50, 30)


def preview_steps(steps: int, count: int) -> tuple[int, ...]:
    """Return the steps after which previews are made, spread evenly between the first and the last.

    None is made after the last step, because the image itself follows. So there are fewer than ``count`` if
    there are not enough steps. Pure.
    """
    gaps = count + 1
    rounded = {(2 * steps * number + gaps) // (2 * gaps) for number in range(1, gaps)}
    return tuple(sorted(step for step in rounded if 1 <= step < steps))


def encode_preview(picture: Image) -> bytes:
    """Encode an RGB picture as a JPEG of at most 256 pixels a side and 32 KiB.

    A larger picture is scaled down. One that takes too many bytes gets a lower quality, then fewer pixels.
    """
    if max(picture.size) > MAX_PREVIEW_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), Resampling.BILINEAR)
    for quality in _QUALITIES:
        out = io.BytesIO()
        # Colours at full resolution: some previews are only eight pixels wide.
        picture.save(out, "JPEG", quality=quality, subsampling=0)
        if out.tell() <= MAX_PREVIEW_BYTES:
            return out.getvalue()
    return encode_preview(picture.reduce(2))
