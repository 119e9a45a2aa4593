"""Handling of Ctrl-C before a command's work begins and after it ends.

A KeyboardInterrupt during an import can surface as any other exception, or be lost.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT


def exit_at_once() -> None:
    """Let Ctrl-C end the process immediately from now on."""
    signal.signal(signal.SIGINT, _exit)


def raise_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, if it would have ended the process."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_if_interrupted(code: object) -> None:
    """End an interrupted process without waiting for its threads, one of which may be waiting for a store."""
    if code == EXIT_CODE:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(EXIT_CODE)


def _exit(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)
