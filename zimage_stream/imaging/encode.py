"""Encoding of images as PNG, WebP or JPEG."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

from zimage_stream.imaging.metadata import to_xmp

PNG_LEVEL = 1
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_EIGHT_BITS, _TRUECOLOUR = 8, 2
JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded image; ``extension`` has no dot."""

    data: bytes
    content_type: str
    extension: str


def encode(image: Image.Image, format: str, quality: int | None, text: Mapping[str, str]) -> Encoded:  # noqa: A002
    """Encode an image, with its parameters embedded as metadata.

    Args:
        image: an RGB image.
        format: png, webp or jpeg.
        quality: 1 to 100 for webp and jpeg; ``None`` means lossless webp, and jpeg at 95. PNG is always
            lossless.
        text: the parameters needed to reproduce the image; written as iTXt chunks in PNG, as XMP otherwise.

    Raises:
        ValueError: the format is not one of these.
    """
    out = io.BytesIO()
    match format:
        case "png":
            _write_png(image, text, out)
            return Encoded(out.getvalue(), "image/png", "png")
        case "webp":
            lossy = (
                {"lossless": True, "quality": 50, "method": 0} if quality is None else {"quality": quality}
            )
            image.save(out, "WEBP", xmp=to_xmp(text), **lossy)
            return Encoded(out.getvalue(), "image/webp", "webp")
        case "jpeg":
            image.save(out, "JPEG", quality=JPEG_QUALITY if quality is None else quality, xmp=to_xmp(text))
            return Encoded(out.getvalue(), "image/jpeg", "jpg")
    raise ValueError(f"format: got {format!r}, takes png, webp or jpeg")


def _write_png(image: Image.Image, text: Mapping[str, str], out: io.BytesIO) -> None:
    """Write a PNG with 8 bits per channel (PNG specification, third edition).

    Pillow's own writer tries every filter on every row and uses zlib. Here each row is stored as its
    difference from the row above, which suits photographs, and compressed with Intel's ISA-L.
    """
    info = PngImagePlugin.PngInfo()
    for name, value in text.items():
        info.add_itxt(name, value)
    try:
        # Its dependencies belong to the extra "worker"; clients that only read images do not need them.
        from zimage_stream.imaging.idat import idat
    except ImportError:
        image.save(out, "PNG", pnginfo=info, compress_level=PNG_LEVEL)
        return
    header = struct.pack(">IIBBBBB", *image.size, _EIGHT_BITS, _TRUECOLOUR, 0, 0, 0)
    out.write(_PNG_SIGNATURE)
    PngImagePlugin.putchunk(out, b"IHDR", header)
    for kind, data, *_ in info.chunks:
        PngImagePlugin.putchunk(out, kind, data)
    out.write(idat(image, PNG_LEVEL))
    PngImagePlugin.putchunk(out, b"IEND")
