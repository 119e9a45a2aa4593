"""Points at which a test can kill the process, as by ``kill -9``; inert unless the variable is set.

``ZIMAGE_FAILPOINT=produced:3`` kills the process the third time it reaches ``produced``.
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
    """Die here if this is the point that the environment names and has been reached often enough."""
    if point == _armed and next(_left) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
