"""Fast encoding of a PNG's image data: numpy for the filter, Intel's ISA-L for deflate."""

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
"""Value of ``wbits`` for raw deflate (without zlib's header and checksum) with the largest window."""
_LARGE = 1 << 20
"""Size in bytes from which the two halves are compressed in parallel."""

_pool = ThreadPoolExecutor(2, "deflate")


def idat(image: Image, level: int) -> bytes:
    """Encode the IDAT chunk: each row as its difference from the row above, compressed.

    All steps release the GIL. The lower half of a large image is compressed independently on another thread;
    the outcome is still a single stream, as the PNG specification requires, and only a few bytes longer.

    Args:
        image: an RGB image.
        level: compression level of ISA-L, 0 to 3.
    """
    rows = numpy.frombuffer(image.tobytes(), numpy.uint8).reshape(image.height, -1)
    filtered = numpy.empty((image.height, 1 + rows.shape[1]), numpy.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    numpy.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as bytes are
    if filtered.size < _LARGE:
        return _chunk(isal_zlib.compress(filtered, level))
    middle = image.height // 2
    lower = _pool.submit(_deflated, filtered[middle:], level, isal_zlib.Z_FINISH)
    upper = _deflated(filtered[:middle], level, isal_zlib.Z_SYNC_FLUSH)
    checksum = isal_zlib.adler32(filtered).to_bytes(4)
    return _chunk(_ZLIB_HEADER, upper, lower.result(), checksum)


def _deflated(rows: Any, level: int, end: int) -> bytes:
    """Compress rows to a byte-aligned part of a stream that does not refer to other parts."""
    deflate = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW)
    return bytes(deflate.compress(rows) + deflate.flush(end))


def _chunk(*parts: bytes) -> bytes:
    # Pillow's own function uses zlib's checksum, which is ten times slower.
    crc = reduce(lambda crc, part: isal_zlib.crc32(part, crc), parts, isal_zlib.crc32(_KIND))
    return b"".join((sum(map(len, parts)).to_bytes(4), _KIND, *parts, crc.to_bytes(4)))
