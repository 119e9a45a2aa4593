"""What Ctrl-C does while nothing is begun that would have to be finished.

A KeyboardInterrupt in the middle of an import can come out as any exception, or as none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT


def ends_at_once() -> None:
    """From now on Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, _end)


def raises() -> None:
    """From now on it raises KeyboardInterrupt again, if it ended the process so far."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ends_now(code: object) -> None:
    """End an interrupted process. Else it would wait for its threads, and one may wait for a store."""
    if code == EXIT_CODE:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(EXIT_CODE)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)
