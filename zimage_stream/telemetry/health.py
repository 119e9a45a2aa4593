"""Whether a worker lives, and whether it can serve; if not, why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zimage_stream.escaping import shortened

HEARTBEAT_BOUND_S = 60.0
"""The Kafka thread turns many times a second."""
PATIENCE_S = 3.0
"""A call that is not answered for so long says that who was called is down."""
CALL_BOUND_S = 600.0
"""A call that has not returned by then never will: the process is better restarted."""


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
    """Thread-safe. Reasons are shortened: they quote what servers say, and records.

    Args:
        clock: monotonic seconds.
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
        """The model is loaded; from now on the Kafka thread has to turn."""
        with self._lock:
            self._beat = self._clock()
            self._started = True

    def beat(self) -> None:
        """The Kafka thread is alive."""
        self._beat = self._clock()

    @contextmanager
    def waiting(self, dependency: str, call: str) -> Iterator[None]:
        """For a call that returns when the dependency answers, however long that takes."""
        self._call = _Call(dependency, call, self._clock())
        try:
            yield
        finally:
            self._call = None
            self.beat()

    def up(self, dependency: str) -> None:
        """A dependency answered."""
        # Said many times a second, and nearly always no news.
        if self._dependencies.get(dependency, _UNHEARD) is not None:
            with self._lock:
                self._dependencies[dependency] = None

    def down(self, dependency: str, reason: str) -> None:
        """A dependency does not answer, or refuses everybody."""
        with self._lock:
            known = self._dependencies.get(dependency)
            self._dependencies[dependency] = _Outage(
                shortened(reason), known.since if known else self._clock()
            )

    def is_up(self, dependency: str) -> bool:
        """Whether the dependency answered when it was last asked."""
        return self._dependencies.get(dependency) is None

    def dependencies(self) -> dict[str, bool]:
        """Whether each dependency heard of so far is up."""
        down = self._outages()
        with self._lock:
            return {name: name not in down for name in sorted({*self._dependencies, *down})}

    def hold(self, key: str, reason: str, partition: int | None = None) -> None:
        """Something needs an operator; it stays until :meth:`release`.

        Args:
            partition: whose it is; with the partition it goes, for whoever has it next to say.
        """
        with self._lock:
            self._holds[key] = _Hold(shortened(reason), partition)

    def release(self, key: str) -> None:
        """What needed an operator is mended."""
        with self._lock:
            self._holds.pop(key, None)

    def release_partitions(self, partitions: Collection[int]) -> None:
        """These partitions are not ours any more, and nothing that was said of them is."""
        with self._lock:
            self._holds = {k: hold for k, hold in self._holds.items() if hold.partition not in partitions}

    def alive(self) -> bool:
        """Whether the Kafka thread has turned lately, or waits for an answer.

        A worker that still loads its model is alive too.
        """
        return self._silent_s() is None

    def ready(self) -> tuple[bool, list[str]]:
        """Whether the worker can serve, and every reason why not."""
        reasons = [] if self._started else ["the model is loading"]
        silent_s = self._silent_s()
        if silent_s is not None:
            reasons.append(f"the Kafka thread has not turned for {silent_s:.0f} s")
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
            down.setdefault(call.dependency, _Outage(f"{call.name} is not answered", call.since))
        return down

    def _silent_s(self) -> float | None:
        """Seconds since the Kafka thread was heard of, if they are too many."""
        call = self._call
        since, bound = (self._beat, HEARTBEAT_BOUND_S) if call is None else (call.since, CALL_BOUND_S)
        silent_s = self._clock() - since
        # Until it has its model there is no Kafka thread to be heard of.
        return silent_s if silent_s >= bound and (self._started or call is not None) else None


_UNHEARD = _Outage("never asked", 0.0)
