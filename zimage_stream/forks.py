"""Support for clients in forked child processes.

A child has a copy of the parent's memory but none of its threads: a copied producer sends nothing, its
destructor waits indefinitely, a lock that another thread held is never released, and sockets are shared with
the parent. Each client therefore starts afresh in the child and does not touch its copies.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object with threads, locks or connections."""

    def after_fork(self) -> None:
        """Start afresh in a child process, in which no other thread is running."""
        ...


_registered: weakref.WeakSet[ForkAware] = weakref.WeakSet()


def register(client: ForkAware) -> None:
    """Call ``after_fork`` of this object in every child process that is forked from now on."""
    _registered.add(client)


def leak(client: object) -> None:
    """Keep a copy of the parent's client from ever being destroyed, even when the process ends."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _in_child() -> None:
    for client in list(_registered):
        client.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_in_child)
