"""Calls that may never return, made on a thread that can be left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Caller:
    """One thread that makes one call after another; it keeps no process from ending.

    Seen with librdkafka 2.16: after a broker's restart ``send_offsets_to_transaction`` may never return,
    whatever timeout it was given (its issues 5456 and 5511 say why).
    """

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[None]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], Any], timeout_s: float) -> None:
        """Make the call, and raise what it raises.

        Raises:
            TimeoutError: it has not returned in time. It may still, or never: make no other call.
        """
        done: Future[None] = Future()
        self._calls.put((function, done))
        done.result(timeout_s)

    def close(self) -> None:
        """End the thread after the call that it makes; returns at once."""
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
            # Nothing is kept alive while there is nothing to do.
            del wanted, function, done
