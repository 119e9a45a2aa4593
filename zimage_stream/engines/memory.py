"""What the engine asks of the device's memory. Imports torch.

A seam: the engine decides when memory is given back, and that can be tried without a GPU.
"""

from __future__ import annotations

from typing import Protocol

import torch

UNUSED_CACHE_BYTES = 2 << 30
"""Memory that torch keeps reserved beyond what it uses before it is given back."""


class DeviceMemory(Protocol):
    """Figures in bytes."""

    def reserved(self) -> int:
        """What the process holds of the device."""
        ...

    def allocated(self) -> int:
        """What of that is in use."""
        ...

    def release(self) -> None:
        """Give back what is held and not in use."""
        ...


class CudaMemory:
    """Torch's caching allocator on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def release(self) -> None:
        torch.cuda.empty_cache()


class HostMemory:
    """The CPU's allocator keeps nothing back."""

    def reserved(self) -> int:
        return 0

    def allocated(self) -> int:
        return 0

    def release(self) -> None:
        return


def memory_of(device: torch.device) -> DeviceMemory:
    """The memory of a device."""
    return CudaMemory(device) if device.type == "cuda" else HostMemory()
