"""Places where a test can have the process die, as by ``kill -9``; inert without their variable.

``ZIMAGE_FAILPOINT=produced:3`` ends the process at the third time that it comes by ``produced``.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import Literal, get_args

VARIABLE = "ZIMAGE_FAILPOINT"
Point = Literal["fetched", "marked", "generating", "uploaded", "produced", "offsets-sent", "committed"]
POINTS: tuple[Point, ...] = get_args(Point)

_armed, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = itertools.count(int(_count or 1) - 1, -1)


def failpoint(point: Point) -> None:
    """Die here if the environment says so, and so often did not."""
    if point == _armed and next(_left) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
