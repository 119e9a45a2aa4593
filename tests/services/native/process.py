"""A server process that tests can stop, kill, pause and restart with its data and its ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, Self

from tests.services.addresses import wait_until_ready
from tests.services.errors import ServiceError

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
_LOG_LINES = 25

# Linux ends a child whose parent is gone, and by "parent" means the thread that started it. So one thread
# starts all of them and lives as long as this process; a test may start a service from a thread of its own.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

# Runs in the child, before the server: an aborted test run must leave nothing behind.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""

# What a server sees of our environment: the user's MINIO_* or JAVA_* variables must not affect it.
_INHERITED = ("HOME", "LANG", "PATH", "TMPDIR", "TZ")


class ServiceEndedError(Exception):
    """The process has ended; there is nothing to wait for."""


class NativeService(ABC):
    """One server process with a folder of its own for data and log.

    ``start`` and ``stop`` may be called in any order and any number of times; address and data stay the same
    throughout. Usable as a context manager.

    Args:
        folder: created if missing; the caller removes it.
    """

    title: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_set_up = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The server's output, over all its starts."""
        return self.folder / "server.log"

    @property
    def pid(self) -> int:
        """The server's process id.

        Raises:
            ServiceError: it is not running.
        """
        if self._process is None:
            raise ServiceError(f"{self.title} does not run")
        return self._process.pid

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The absolute path of the program, and its arguments."""

    @abstractmethod
    def _environment(self) -> Mapping[str, str]:
        """Environment variables of this server, in addition to those of every process."""

    @abstractmethod
    def _set_up(self) -> None:
        """Create what must be in ``folder`` before the first start."""

    @abstractmethod
    def probe(self) -> None:
        """Return if the server serves; raise ServiceError while it does not."""

    def launch(self) -> None:
        """Start the process without waiting until it serves. Does nothing if it is running."""
        if self._process is not None:
            return
        if not self._is_set_up:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._set_up()
            self._is_set_up = True
        self._process = _spawner.submit(self._spawn).result()

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until the server serves.

        Raises:
            ServiceError: it ended, or the time is up; the process is stopped and its last lines are quoted.
        """
        try:
            wait_until_ready(self._probe_if_alive, timeout_s)
        except ServiceEndedError as error:
            self._process = None
            raise ServiceError(self._with_log(str(error))) from error
        except ServiceError as error:
            self.kill()
            raise ServiceError(self._with_log(f"{self.title}: {error}")) from error

    def start(self) -> None:
        """Start the server and wait until it serves.

        Raises:
            ServiceError: it did not come up; its last lines are quoted.
            ServiceMissingError: it is unavailable on this machine.
        """
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """Stop the server cleanly, or by force if it takes longer than a minute."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        # A paused process receives the signal only once it runs again.
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the server (SIGKILL), like a power cut. Returns when it has ended."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, but it does not respond."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Resume a paused server."""
        os.kill(self.pid, signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server cleanly and start it again, with the same data and address."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        command = list(self._command())
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={**inherited, **self._environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the tests, which then stop the services cleanly.
                start_new_session=True,
            )

    def _probe_if_alive(self) -> None:
        if self._process is None:
            raise ServiceEndedError(f"{self.title} does not run")
        code = self._process.poll()
        if code is not None:
            raise ServiceEndedError(f"{self.title} ended with exit code {code}")
        self.probe()

    def _with_log(self, message: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join([message, f"last lines of {self.log}:", *(f"  {line}" for line in lines)])


def launch_all(services: Sequence[NativeService]) -> None:
    """Start several servers at once and wait until all serve; if one does not, none is left running.

    Raises:
        ServiceError: as for :meth:`NativeService.start`.
    """
    try:
        for service in services:
            service.launch()
        for service in services:
            service.wait_ready()
    except BaseException:
        stop_all(services)
        raise


def stop_all(services: Sequence[NativeService]) -> None:
    """Stop all servers that are running, last one first."""
    for service in reversed(services):
        service.stop()


def java_options(heap_mb: int) -> list[str]:
    """JVM options for a small server that should start quickly rather than run fast for days."""
    return [f"-Xmx{heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"]
