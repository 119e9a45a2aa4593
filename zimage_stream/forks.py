"""What clients do in a child that was forked from a process which used them.

A child has a copy of their memory and none of their threads: a producer there sends nothing, its destruction
waits for ever, a lock that another thread held is never given back, and a socket is the parent's too. So each
begins anew in the child, and leaves its copies alone.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """What has threads, locks or connections."""

    def after_fork(self) -> None:
        """Begin anew, in a child. No other thread runs."""
        ...


_living: weakref.WeakSet[Forked] = weakref.WeakSet()


def follow(one: Forked) -> None:
    """Have it begin anew in each child that is forked from now on."""
    _living.add(one)


def leave(client: object) -> None:
    """Never destroy a copy of the parent's client, not even when the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _in_child() -> None:
    for one in list(_living):
        one.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_in_child)
