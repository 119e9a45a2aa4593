"""What a worker process reports to its supervisor, through a pipe that the supervisor opens.

The worker writes two lines: the number of its port when it starts to listen, and ``loaded`` once it can
generate.
"""

from __future__ import annotations

import contextlib
import os
import select

_LOADED = b"loaded"


class Reporter:
    """The worker's end of the pipe.

    Args:
        descriptor: file descriptor to write to; ``None`` without a supervisor, and then nothing is written.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def listening(self, port: int) -> None:
        """Report the port of the health checks and metrics."""
        self._write(b"%d" % port)

    def loaded(self) -> None:
        """Report that the model is loaded."""
        self._write(_LOADED)

    def _write(self, line: bytes) -> None:
        if self._descriptor is not None:
            # If the supervisor has died, the signal that its death sends us is on its way.
            with contextlib.suppress(BrokenPipeError):
                os.write(self._descriptor, line + b"\n")


class Report:
    """The supervisor's end of the pipe, and what one worker process has reported so far.

    Args:
        descriptor: file descriptor to read from; closed with this object.

    Attributes:
        port: the port of the worker's health checks and metrics; ``None`` until it listens.
        loaded: whether the worker has loaded its model.
    """

    def __init__(self, descriptor: int) -> None:
        self.port: int | None = None
        self.loaded = False
        self._descriptor: int | None = descriptor
        self._incomplete = b""

    @classmethod
    def open(cls) -> tuple[Report, int]:
        """Open a pipe. Returns the report and the descriptor for the worker's end."""
        read, write = os.pipe()
        return cls(read), write

    def update(self) -> None:
        """Read what the worker has written. Does not wait."""
        while self._descriptor is not None and select.select([self._descriptor], [], [], 0)[0]:
            piece = os.read(self._descriptor, 64)
            self._incomplete += piece
            if not piece:
                self.close()
        *lines, self._incomplete = self._incomplete.split(b"\n")
        for line in lines:
            if line == _LOADED:
                self.loaded = True
            else:
                self.port = int(line)

    def close(self) -> None:
        """Close the pipe, if the end of it has not been reached."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
