"""Whether a worker lives, and whether it can serve; if not, why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HEARTBEAT_BOUND_S = 60.0
"""The Kafka thread turns many times a second."""
PATIENCE_S = 3.0
"""A call that is not answered for so long says that who was called is down."""
CALL_BOUND_S = 600.0
"""A call that has not returned by then never will: the process is better restarted."""


@dataclass(frozen=True, slots=True)
class _Down:
    reason: str
    since: float


class Health:
    """Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = False
        self._beat = clock()
        self._down: dict[str, _Down] = {}
        self._holds: dict[str, str] = {}
        self._call: tuple[str, str, float] | None = None

    def set_started(self) -> None:
        """The model is loaded."""
        with self._lock:
            self._started = True

    def beat(self) -> None:
        """The Kafka thread is alive."""
        self._beat = self._clock()

    @contextmanager
    def waiting(self, dependency: str, call: str) -> Iterator[None]:
        """For a call that returns when the dependency answers, however long that takes."""
        self._call = (dependency, call, self._clock())
        try:
            yield
        finally:
            self._call = None
            self.beat()

    def up(self, dependency: str) -> None:
        """A dependency answered."""
        if dependency in self._down:
            with self._lock:
                self._down.pop(dependency, None)

    def down(self, dependency: str, reason: str) -> None:
        """A dependency does not answer, or refuses everybody."""
        with self._lock:
            since = self._down[dependency].since if dependency in self._down else self._clock()
            self._down[dependency] = _Down(reason, since)

    def is_up(self, dependency: str) -> bool:
        """Whether the dependency answered when it was last asked."""
        return dependency not in self._down

    def hold(self, key: str, reason: str) -> None:
        """Something needs an operator; it stays until :meth:`release`."""
        with self._lock:
            self._holds[key] = reason

    def release(self, key: str) -> None:
        """What needed an operator is mended."""
        with self._lock:
            self._holds.pop(key, None)

    def alive(self) -> bool:
        """Whether the Kafka thread has turned lately, or waits for an answer."""
        call = self._call
        if call is not None:
            return self._clock() - call[2] < CALL_BOUND_S
        return self._clock() - self._beat < HEARTBEAT_BOUND_S

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the worker can serve, and every reason why not."""
        with self._lock:
            reasons = [] if self._started else ["the model is loading"]
            down = dict(self._down)
            call = self._call
            if call is not None and self._clock() - call[2] > PATIENCE_S:
                down.setdefault(call[0], _Down(f"{call[1]} is not answered", call[2]))
            for name, state in sorted(down.items()):
                reasons.append(f"{name} has been down for {self._clock() - state.since:.0f} s: {state.reason}")
            reasons += [self._holds[key] for key in sorted(self._holds)]
        return not reasons, reasons
