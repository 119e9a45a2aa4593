"""Worker processes as an operator runs them, to be killed, paused, stopped and queried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

READY_S = 60.0
OVERLOADED = 5.0
"""Factor by which a busy machine may be slower. Timeouts in calls are those of an idle machine."""
ANSWER_S = 60.0
"""Longest response time of a worker's own port."""


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Poll until the condition returns something true, and return that; fail with ``what`` otherwise.

    Args:
        timeout_s: long enough for an idle machine.
    """
    patience_s = timeout_s * OVERLOADED
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


class WorkerProcess:
    """One ``zimage worker --no-supervise``, which can be started again after it has ended."""

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.slot = name
        self.program = "zimage_stream"
        """Module to run."""
        self._environment = environment
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_before = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, **more: str) -> WorkerProcess:
        """Start a new life; keywords are environment variables for that life."""
        self._log_before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.program, "worker", "--no-supervise"],
                env={**self._environment, "ZIMAGE_WORKER__SLOT": self.slot, **more},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        return self

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As the kernel does: no warning, no clean-up."""
        # Another thread may start the next life as soon as this one has ended.
        process = self._process
        assert process is not None
        process.kill()
        process.wait(10 * OVERLOADED)

    def wait(self, timeout_s: float) -> int:
        """Wait for its exit code; ``timeout_s`` as for :func:`until`."""
        assert self._process is not None
        return self._process.wait(timeout_s * OVERLOADED)

    def exit_code(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """Its log over all lives; lines that are not JSON come from a crash."""
        text = self.log.read_text(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def port(self) -> int | None:
        """The port of this life's health endpoint."""
        with self.log.open("rb") as source:
            source.seek(self._log_before)
            for line in source:
                if b"health and metrics on port" in line:
                    return int(json.loads(line)["message"].rsplit(" ", 1)[1])
        return None

    def ready(self) -> tuple[bool, list[str]]:
        """The report of ``/readyz``; not ready while the port does not respond."""
        port = self.port()
        if port is None:
            return False, ["not started"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=ANSWER_S) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as refusal:
            body = json.load(refusal)
        except OSError as error:
            return False, [str(error)]
        return body["ready"], body["reasons"]

    def wait_ready(self) -> WorkerProcess:
        def ready() -> bool:
            assert self.exit_code() is None, f"{self.name} ended:\n{self.log.read_text()[-2000:]}"
            return self.ready()[0]

        until(ready, READY_S, f"{self.name} is ready")
        return self

    def partitions(self) -> int:
        """Number of partitions assigned since it started, less those taken away."""
        return self._metric("zimage_partitions")

    def wait_begun(self) -> None:
        """Wait until it has marked its first request, the last step before running it."""
        until(lambda: self._metric("zimage_mark_seconds_count"), 60, f"{self.name} has marked a request")

    def _metric(self, name: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}/metrics", timeout=ANSWER_S) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return int(float(line.split()[1]))
        return 0


class Fleet:
    """Workers that share settings. A context manager: none outlives it."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self.workers: list[WorkerProcess] = []

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.close()

    def start(self, name: str, slot: str | None = None, **settings: str) -> WorkerProcess:
        """Start a worker; keywords are additional environment variables.

        Args:
            slot: its name, if not given.
        """
        return self.add(name, slot, **settings).start()

    def add(self, name: str, slot: str | None = None, **settings: str) -> WorkerProcess:
        """A worker that is not started yet; otherwise as :meth:`start`."""
        worker = WorkerProcess(name, {**self._environment, **settings}, self._folder)
        worker.slot = slot or name
        self.workers.append(worker)
        return worker

    def generated(self) -> Counter[str]:
        """How often each request was generated, over all workers and lives."""
        return Counter(
            line["request_id"]
            for worker in self.workers
            for line in worker.lines()
            if line["message"] == "generated"
        )
