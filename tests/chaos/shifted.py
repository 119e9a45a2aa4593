"""``python -m tests.chaos.shifted ARGUMENTS``: ``zimage`` under a wall clock that a test sets.

The machine's own clock is shared, so the worker's only reading of it is shifted by the seconds in the file
that ``SHIFTED_CLOCK`` names.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from zimage_consumers.image_worker.window import jobs
from zimage_stream.__main__ import main

SHIFT = Path(os.environ["SHIFTED_CLOCK"])


class Shifted(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Shifted:
        return super().now(tz) + timedelta(seconds=float(SHIFT.read_text() or 0))


if __name__ == "__main__":
    vars(jobs)["datetime"] = Shifted
    main()
