"""The engine's interface to device memory. Imports torch.

It is a seam for tests: the engine decides when memory is released, and this can be tested without a GPU.
"""

from __future__ import annotations

from typing import Protocol

import torch

UNUSED_CACHE_BYTES = 2 << 30
"""Amount of reserved but unused memory, in bytes, above which it is released."""


class DeviceMemory(Protocol):
    """Memory of a device; all figures are in bytes."""

    def reserved(self) -> int:
        """Return the memory that the process holds."""
        ...

    def allocated(self) -> int:
        """Return the part of the reserved memory that is in use."""
        ...

    def release(self) -> None:
        """Release reserved memory that is not in use."""
        ...


class CudaMemory:
    """Memory of torch's caching allocator on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def release(self) -> None:
        torch.cuda.empty_cache()


class HostMemory:
    """Memory of the CPU, whose allocator caches nothing."""

    def reserved(self) -> int:
        return 0

    def allocated(self) -> int:
        return 0

    def release(self) -> None:
        return


def memory_of(device: torch.device) -> DeviceMemory:
    """Create the memory interface of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()
