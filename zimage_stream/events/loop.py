"""An event loop on its own thread, for requests whose callers may not want to wait for the response."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from zimage_stream import forks

_T = TypeVar("_T")


class LoopThread:
    """Runs coroutines concurrently. Thread-safe; its thread starts with the first one.

    Args:
        name: of the thread.
        cleanup: coroutine that :meth:`close` runs after cancelling all others.
    """

    def __init__(self, name: str, cleanup: Callable[[], Awaitable[Any]]) -> None:
        self._name = name
        self._cleanup = cleanup
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        forks.register(self)

    def after_fork(self) -> None:
        """Forget the parent's thread; the child starts its own when it needs one."""
        self._lock = threading.Lock()
        forks.leak(self._loop)
        self._loop = self._thread = None

    def submit(self, call: Callable[[], Awaitable[_T]]) -> Future[_T]:
        """Start a coroutine and return its future at once."""

        async def called() -> _T:
            return await call()

        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(called(), self._loop)

    def close(self) -> None:
        """Cancel the running coroutines, run the cleanup coroutine, and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._cleanup()
