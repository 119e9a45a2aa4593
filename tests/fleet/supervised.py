"""``zimage worker`` with its supervisor, as an operator runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.fleet.arena import Arena
from tests.fleet.workers import ANSWER_S, OVERLOADED, until
from zimage_stream.settings import environment_of


class Supervised:
    """A running supervisor and its log. A context manager: neither it nor a worker outlives it.

    Args:
        more: environment variables in addition to the arena's settings.
        program: module to run.
    """

    def __init__(
        self,
        arena: Arena,
        log: Path,
        more: Mapping[str, str] | None = None,
        workers: int = 2,
        program: str = "zimage_stream",
    ) -> None:
        self.log = log
        environment = environment_of(arena.settings) | {"ZIMAGE_ENGINE__SIMULATED_MS": "100"}
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", program, "worker", "--devices", f"cpu:{workers}"],
                env={**environment, **(more or {})},
                stdout=sink,
                stderr=sink,
            )

    def __enter__(self) -> Supervised:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(60)
        try:
            until(lambda: not any(map(alive, self.started())), 40, "no worker outlives its supervisor")
        finally:
            for pid in filter(alive, self.started()):
                os.kill(pid, signal.SIGKILL)

    def words(self) -> str:
        """The log so far."""
        return self.log.read_text(errors="replace")

    def started(self) -> list[int]:
        """Process ids of all workers started so far, oldest first."""
        return [int(pid) for pid in re.findall(r"started, process (\d+)", self.words())]

    def get(self, path: str) -> str:
        """The response of the supervisor's own port, whatever its status."""
        (port,) = re.findall(r"of all workers on port (\d+)", self.words())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_S) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.read().decode()

    def slots_with_work(self) -> int:
        """Slots that have taken partitions over."""
        return len(set(re.findall(r'took over partitions.*"slot": "([^"]+)"', self.words())))

    def wait_with_work(self, workers: int = 2) -> Supervised:
        """Wait until this many workers have partitions."""
        until(lambda: self.slots_with_work() == workers, 120, f"{workers} workers have partitions")
        return self

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60 * OVERLOADED)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
