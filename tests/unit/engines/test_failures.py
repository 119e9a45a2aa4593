"""How torch's errors are classified, and whether the process can continue."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.engines.failures import failure_of
from zimage_stream.errors import ContextLostError, EngineError, OutOfMemoryError

CUDA_HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call"


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        (
            "OutOfMemoryError",
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...",
            OutOfMemoryError,
        ),
        ("RuntimeError", "CUDA error: out of memory" + CUDA_HINT, OutOfMemoryError),
        ("AcceleratorError", "CUDA error: out of memory" + CUDA_HINT, OutOfMemoryError),
        (
            "RuntimeError",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
            OutOfMemoryError,
        ),
        (
            "RuntimeError",
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
            OutOfMemoryError,
        ),
        ("MemoryError", "", OutOfMemoryError),
        ("AcceleratorError", "CUDA error: device-side assert triggered" + CUDA_HINT, ContextLostError),
        (
            "RuntimeError",
            "CUDA error: an illegal memory access was encountered" + CUDA_HINT,
            ContextLostError,
        ),
        ("RuntimeError", "CUDA error: unspecified launch failure", ContextLostError),
        ("RuntimeError", "CUDA error: misaligned address", ContextLostError),
        ("RuntimeError", "CUDA error: uncorrectable ECC error encountered", ContextLostError),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", ContextLostError),
        ("RuntimeError", "CUDA error: unknown error", ContextLostError),
        ("RuntimeError", "The size of tensor a (3) must match the size of tensor b (4)", EngineError),
        ("IndexError", "index 600 is out of bounds for dimension 0 with size 512", EngineError),
        ("ZeroDivisionError", "division by zero", EngineError),
        # A library may quote the prompt.
        ("ValueError", "cannot read 'CUDA error: device-side assert triggered'", EngineError),
        ("KeyError", "'out of memory'", EngineError),
    ],
)
def test_the_class_of_a_failure(kind: str, message: str, expected: type[EngineError]) -> None:
    assert type(failure_of(kind, message)) is expected


def test_the_message_is_one_line_that_names_the_class() -> None:
    assert str(failure_of("RuntimeError", "first\nsecond")) == "RuntimeError: first"
    assert str(failure_of("IndexError", "")) == "IndexError: no message"


@given(st.text(max_size=3000))
def test_any_message_is_shortened(message: str) -> None:
    said = str(failure_of("RuntimeError", message))
    assert said.startswith("RuntimeError: ")
    assert len(said) <= 500
    assert len(said.splitlines()) == 1
