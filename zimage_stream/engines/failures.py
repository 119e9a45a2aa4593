"""What an exception out of the pipeline means for the device. Pure."""

from __future__ import annotations

from zimage_stream.errors import ContextLostError, EngineError, OutOfMemoryError

_POISONED = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc",
    "device lost",
    "launch timed out",
    "cudnn_status_execution_failed",
    "cudnn_status_mapping_error",
    "cublas_status_execution_failed",
)
_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed", "can't allocate memory")


def failure_of(error: BaseException) -> EngineError:
    """The engine error that stands for what torch or diffusers raised.

    By name and message, because torch has no class of its own for a poisoned context, and so that
    this can be told without a GPU.
    """
    name, message = type(error).__name__, str(error)
    text = f"{name}: {message}".lower()
    brief = f"{name}: {message.strip().splitlines()[0] if message.strip() else 'no message'}"[:500]
    if any(mark in text for mark in _POISONED):
        return ContextLostError(brief)
    if name in ("OutOfMemoryError", "MemoryError") or any(mark in text for mark in _MEMORY):
        return OutOfMemoryError(brief)
    return EngineError(brief)
