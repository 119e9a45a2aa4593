"""What an exception out of the pipeline means for the device. Pure."""

from __future__ import annotations

from zimage_stream.errors import ContextLostError, EngineError, OutOfMemoryError

_BRIEF = 500
# Torch raises these for what the device or an allocator says. Any other class may quote a prompt in
# its message, and a prompt must not be able to pass for a broken device.
_OF_THE_DEVICE = ("RuntimeError", "AcceleratorError", "OutOfMemoryError", "MemoryError")
_POISONED = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "invalid program counter",
    "misaligned address",
    "hardware stack error",
    "unspecified launch failure",
    "cuda error: unknown error",
    "uncorrectable ecc",
    "uncorrectable nvlink",
    "device lost",
    "launch timed out",
    "cudnn_status_execution_failed",
    "cudnn_status_mapping_error",
    "cublas_status_execution_failed",
    "cublas_status_mapping_error",
    "cublas_status_internal_error",
)
_MEMORY = (
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
)


def failure_of(kind: str, message: str) -> EngineError:
    """The engine error that stands for what torch or diffusers raised.

    By name and message, because torch has no class of its own for a poisoned context, and so that
    this can be told without a GPU.

    Args:
        kind: name of the exception's class, without its module.
        message: what it says; only the first line is kept.
    """
    first = next(iter(message.strip().splitlines()), "no message")
    brief = f"{kind}: {first}"[:_BRIEF]
    if kind not in _OF_THE_DEVICE:
        return EngineError(brief)
    said = message.lower()
    if any(mark in said for mark in _POISONED):
        return ContextLostError(brief)
    if kind in ("OutOfMemoryError", "MemoryError") or any(mark in said for mark in _MEMORY):
        return OutOfMemoryError(brief)
    return EngineError(brief)
