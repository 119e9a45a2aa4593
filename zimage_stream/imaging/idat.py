"""The image data of a PNG, fast: numpy for the filter, Intel's ISA-L for deflate."""

from __future__ import annotations

import numpy
from isal import isal_zlib
from PIL.Image import Image

_UP = 2


def image_data(image: Image, level: int) -> bytes:
    """What stands in the IDAT chunk: each row as its difference to the one above, deflated.

    Both steps leave the interpreter to other threads.

    Args:
        image: RGB.
        level: of deflate, as ISA-L counts: 0 to 3.
    """
    rows = numpy.frombuffer(image.tobytes(), numpy.uint8).reshape(image.height, -1)
    filtered = numpy.empty((image.height, 1 + rows.shape[1]), numpy.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    numpy.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as bytes are
    data: bytes = isal_zlib.compress(filtered, level)
    return data
