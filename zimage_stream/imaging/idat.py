"""The image data of a PNG, fast: numpy for the filter, Intel's ISA-L for deflate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any

import numpy
from isal import isal_zlib
from PIL.Image import Image

_KIND = b"IDAT"
_UP = 2
_ZLIB_HEADER = b"\x78\x01"
_RAW = -15
"""Deflate without zlib's header and checksum, with its largest window."""
_LARGE = 1 << 20
"""Bytes; above, the halves are deflated beside each other."""

_beside = ThreadPoolExecutor(2, "deflate")


def idat(image: Image, level: int) -> bytes:
    """The IDAT chunk: each row as its difference to the one above, deflated.

    All steps leave the interpreter to other threads. Of a large picture the lower half is deflated on another
    thread, by itself; the stream is one, as the PNG specification wants it, a few bytes longer.

    Args:
        image: RGB.
        level: of deflate, as ISA-L counts: 0 to 3.
    """
    rows = numpy.frombuffer(image.tobytes(), numpy.uint8).reshape(image.height, -1)
    filtered = numpy.empty((image.height, 1 + rows.shape[1]), numpy.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    numpy.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as bytes are
    if filtered.size < _LARGE:
        return _chunk(isal_zlib.compress(filtered, level))
    middle = image.height // 2
    lower = _beside.submit(_deflated, filtered[middle:], level, isal_zlib.Z_FINISH)
    upper = _deflated(filtered[:middle], level, isal_zlib.Z_SYNC_FLUSH)
    checksum = isal_zlib.adler32(filtered).to_bytes(4)
    return _chunk(_ZLIB_HEADER, upper, lower.result(), checksum)


def _deflated(rows: Any, level: int, end: int) -> bytes:
    """Part of a stream, byte by byte, that refers to no other part."""
    deflate = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW)
    return bytes(deflate.compress(rows) + deflate.flush(end))


def _chunk(*parts: bytes) -> bytes:
    # Pillow's own takes zlib's checksum, which is ten times as slow.
    crc = reduce(lambda crc, part: isal_zlib.crc32(part, crc), parts, isal_zlib.crc32(_KIND))
    return b"".join((sum(map(len, parts)).to_bytes(4), _KIND, *parts, crc.to_bytes(4)))
