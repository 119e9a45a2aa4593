"""Classification of the pipeline's exceptions by their effect on the device. Pure."""

from __future__ import annotations

from zimage_stream.errors import ContextLostError, EngineError, OutOfMemoryError

_BRIEF = 500
# The classes that torch raises for errors of the device or an allocator. Messages of other classes may
# quote a prompt, and a prompt must not be able to imitate a broken device.
_OF_THE_DEVICE = ("RuntimeError", "AcceleratorError", "OutOfMemoryError", "MemoryError")
_CONTEXT_LOST = (
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
    """Map an exception of torch or diffusers to an engine error.

    It is judged by name and message, because torch has no class for a lost context, and so that this can be
    tested without a GPU.

    Args:
        kind: name of the exception's class, without its module.
        message: message of the exception; only the first line is kept.
    """
    first = next(iter(message.strip().splitlines()), "no message")
    brief = f"{kind}: {first}"[:_BRIEF]
    if kind not in _OF_THE_DEVICE:
        return EngineError(brief)
    lowered = message.lower()
    if any(phrase in lowered for phrase in _CONTEXT_LOST):
        return ContextLostError(brief)
    if kind in ("OutOfMemoryError", "MemoryError") or any(phrase in lowered for phrase in _MEMORY):
        return OutOfMemoryError(brief)
    return EngineError(brief)
