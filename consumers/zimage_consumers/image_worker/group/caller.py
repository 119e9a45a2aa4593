"""Calls that may never return, made on a thread that can be abandoned."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Caller:
    """A daemon thread that makes one call after another and never keeps the process alive.

    Needed with librdkafka 2.16: after a broker's restart ``send_offsets_to_transaction`` may never return,
    whatever its timeout (see its issues 5456 and 5511).
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], Any], timeout_s: float) -> None:
        """Make the call, and raise what it raises.

        Raises:
            TimeoutError: it has not returned in time. It may still return, or never: make no other call.
        """
        done: Future[None] = Future()
        self._calls.put((function, done))
        done.result(timeout_s)

    def close(self) -> None:
        """End the thread once its current call has returned. Does not wait for that."""
        self._calls.put(None)

    def _run(self) -> None:
        while (wanted := self._calls.get()) is not None:
            function, done = wanted
            try:
                function()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)
            # While idle, keep no reference to the last call.
            del wanted, function, done
