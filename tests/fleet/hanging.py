"""``zimage`` whose workers hang forever, ignoring signals, when they decode a record with ``hang`` in it. No
schema causes that any more. Its supervisor is less patient than in production."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from zimage_consumers.image_worker.host import supervisor
from zimage_stream.__main__ import main
from zimage_stream.events.codec import Codec
from zimage_stream.events.prompt_request import PromptRequest

decode = Codec.decode_request

_HOLDS_THE_INTERPRETER = ctypes.PyDLL(None)
"""The C library, called without releasing the interpreter's lock."""
_ENOUGH_FOR_A_MUTEX = 256


def hang(self: Codec, data: bytes | None) -> PromptRequest:
    if b"hang" in (data or b""):
        # A single step of Python that never ends and gives no other thread a turn: it waits for itself.
        lock = ctypes.create_string_buffer(_ENOUGH_FOR_A_MUTEX)
        _HOLDS_THE_INTERPRETER.pthread_mutex_init(lock, None)
        for _ in range(2):
            _HOLDS_THE_INTERPRETER.pthread_mutex_lock(lock)
    return decode(self, data)


class Impatient(supervisor.Supervisor):
    """A supervisor that starts workers of this program."""

    def __init__(self, settings: Any, devices: Any, arguments: Sequence[str]) -> None:
        own = [__spec__.name if word == "zimage_stream" else word for word in arguments]
        super().__init__(settings, devices, own)


Codec.decode_request = hang  # type: ignore[method-assign]
supervisor.Supervisor = Impatient  # type: ignore[misc]
supervisor.PROBE_EVERY_S, supervisor.PROBE_TIMEOUT_S = 0.3, 2.0
supervisor.SILENT_PROBES, supervisor.STOP_S = 4, 0.5
supervisor.FIRST_WAIT_S = 0.1

if __name__ == "__main__":
    main()
