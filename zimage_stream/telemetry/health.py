"""Liveness and readiness of a worker, with the reasons if it is not ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zimage_stream.escaping import shortened

HEARTBEAT_BOUND_S = 60.0
"""Maximum time between two heartbeats of the Kafka thread, in seconds; normally there are many per second."""
PATIENCE_S = 3.0
"""Duration of a call, in seconds, after which the called dependency counts as down."""
CALL_BOUND_S = 600.0
"""Duration of a call, in seconds, after which it will never return and the process should be restarted."""


@dataclass(frozen=True, slots=True)
class _Outage:
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class _Hold:
    reason: str
    partition: int | None


@dataclass(frozen=True, slots=True)
class _Call:
    dependency: str
    name: str
    since: float


class Health:
    """The health of a worker. Thread-safe.

    Reasons are shortened, because they quote servers and records.

    Args:
        clock: monotonic time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._started = False
        self._beat = clock()
        self._dependencies: dict[str, _Outage | None] = {}
        self._holds: dict[str, _Hold] = {}
        self._call: _Call | None = None

    def set_started(self) -> None:
        """Note that the model is loaded; from now on heartbeats of the Kafka thread are expected."""
        with self._lock:
            self._beat = self._clock()
            self._started = True

    def beat(self) -> None:
        """Note that the Kafka thread is alive."""
        self._beat = self._clock()

    @contextmanager
    def waiting(self, dependency: str, call: str) -> Iterator[None]:
        """Note a blocking call to a dependency, for as long as the context lasts.

        Args:
            dependency: its name.
            call: name of the call, for the reason.
        """
        self._call = _Call(dependency, call, self._clock())
        try:
            yield
        finally:
            self._call = None
            self.beat()

    def up(self, dependency: str) -> None:
        """Note that a dependency answered."""
        # Called many times a second, and nearly always without a change.
        if self._dependencies.get(dependency, _NEVER_QUERIED) is not None:
            with self._lock:
                self._dependencies[dependency] = None

    def down(self, dependency: str, reason: str) -> None:
        """Note that a dependency does not answer, or refuses all requests."""
        with self._lock:
            known = self._dependencies.get(dependency)
            self._dependencies[dependency] = _Outage(
                shortened(reason), known.since if known else self._clock()
            )

    def is_up(self, dependency: str) -> bool:
        """Whether the dependency answered its last request."""
        return self._dependencies.get(dependency) is None

    def dependencies(self) -> dict[str, bool]:
        """Whether each known dependency is up."""
        down = self._outages()
        with self._lock:
            return {name: name not in down for name in sorted({*self._dependencies, *down})}

    def hold(self, key: str, reason: str, partition: int | None = None) -> None:
        """Note a problem that needs an operator, until :meth:`release`.

        Args:
            key: identifies the problem.
            reason: the text for ``/readyz``.
            partition: the affected partition; if it is revoked, its next owner reports the problem instead.
        """
        with self._lock:
            self._holds[key] = _Hold(shortened(reason), partition)

    def release(self, key: str) -> None:
        """Note that the problem with this key has been fixed."""
        with self._lock:
            self._holds.pop(key, None)

    def release_partitions(self, partitions: Collection[int]) -> None:
        """Forget the problems of partitions that are no longer assigned to this worker."""
        with self._lock:
            self._holds = {k: hold for k, hold in self._holds.items() if hold.partition not in partitions}

    def alive(self) -> bool:
        """Whether the Kafka thread sent a recent heartbeat, or is waiting in a call.

        A worker that is still loading its model is alive too.
        """
        return self._silent_s() is None

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the worker can serve, and all reasons if it cannot."""
        reasons = [] if self._started else ["the model is loading"]
        silent_s = self._silent_s()
        if silent_s is not None:
            reasons.append(f"the Kafka thread has been stuck for {silent_s:.0f} s")
        for name, state in sorted(self._outages().items()):
            reasons.append(f"{name} has been down for {self._clock() - state.since:.0f} s: {state.reason}")
        with self._lock:
            reasons += [self._holds[key].reason for key in sorted(self._holds)]
        return not reasons, reasons

    def _outages(self) -> dict[str, _Outage]:
        call = self._call
        with self._lock:
            down = {name: state for name, state in self._dependencies.items() if state is not None}
        if call is not None and self._clock() - call.since > PATIENCE_S:
            down.setdefault(call.dependency, _Outage(f"{call.name} has not returned", call.since))
        return down

    def _silent_s(self) -> float | None:
        """Return the seconds since the last heartbeat if they exceed the bound, otherwise ``None``."""
        call = self._call
        since, bound = (self._beat, HEARTBEAT_BOUND_S) if call is None else (call.since, CALL_BOUND_S)
        silent_s = self._clock() - since
        # The Kafka thread starts only after the model is loaded.
        return silent_s if silent_s >= bound and (self._started or call is not None) else None


_NEVER_QUERIED = _Outage("never queried", 0.0)
