"""A program of somebody else's that runs beside a benchmark."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_LOG_CHARACTERS = 3_000


class Program:
    """A running process. A context manager: ended at the end; after an error its log's last lines are shown.

    Args:
        environment: instead of this process's own.
    """

    def __init__(self, *command: str, environment: Mapping[str, str] | None = None) -> None:
        self._command = command
        self._environment = environment

    def __enter__(self) -> Program:
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if kind is not None:
            last = self._log.read_text(errors="replace")[-_LOG_CHARACTERS:]
            sys.stderr.write(f"the log of {' '.join(self._command)} ends with:\n{last}\n")
        self._log.unlink()
