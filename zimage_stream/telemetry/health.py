"""Whether a worker lives, and whether it can serve; if not, why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

HEARTBEAT_BOUND_S = 60.0
"""The Kafka thread turns many times a second; calls to a broker that is down may hold it this long."""


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

    def set_started(self) -> None:
        """The model is loaded."""
        with self._lock:
            self._started = True

    def beat(self) -> None:
        """The Kafka thread is alive."""
        self._beat = self._clock()

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
        """Whether the Kafka thread has turned lately."""
        return self._clock() - self._beat < HEARTBEAT_BOUND_S

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the worker can serve, and every reason why not."""
        with self._lock:
            reasons = [] if self._started else ["the model is loading"]
            for name, down in sorted(self._down.items()):
                reasons.append(f"{name} has been down for {self._clock() - down.since:.0f} s: {down.reason}")
            reasons += [self._holds[key] for key in sorted(self._holds)]
        return not reasons, reasons
