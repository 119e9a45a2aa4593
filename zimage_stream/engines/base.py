"""What turns specs into pixels, as the worker sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image

MAX_PROMPT_TOKENS = 512


def never() -> bool:
    """Of a generation that is wanted to its end."""
    return False


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One picture to make, complete: two equal specs give the same picture on the same engine.

    ``width`` and ``height`` in pixels; ``seed`` is already chosen; ``guidance_scale`` 0 for Turbo.
    """

    prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int


class Engine(Protocol):
    """Owned by one thread: :meth:`load`, :meth:`generate` and :meth:`close` are called from it alone.

    :meth:`count_tokens` and :meth:`device_memory` may be called from another thread at any time after
    :meth:`load`.
    """

    @property
    def model(self) -> str:
        """Name of the model, as results state it."""
        ...

    @property
    def model_revision(self) -> str:
        """Pinned revision, or ``""`` where there is none."""
        ...

    def load(self) -> None:
        """Bring the model up and warm it, so that the first request costs what the others do."""
        ...

    def generate(self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = never) -> list[Image]:
        """Make one RGB picture per spec, in order.

        Args:
            specs: they share width, height, steps and guidance scale.
            cancelled: asked between steps; True ends the generation.

        Raises:
            GenerationCancelledError: ``cancelled`` said so.
            RequestError: the first spec at fault can never be made (only with a batch of one).
            OutOfMemoryError: the batch does not fit; a smaller one may.
            ContextLostError: the process must end.
            EngineError: anything else; the engine can go on.
        """
        ...

    def idle(self) -> None:
        """Called about once a second while there is nothing to generate; may release memory."""
        ...

    def count_tokens(self, prompt: str) -> int | None:
        """Tokens of the prompt as the model sees it, or ``None`` where no tokenizer is at hand."""
        ...

    def device_memory(self) -> Mapping[str, int]:
        """Bytes of the device that are ``allocated`` and ``reserved``; empty where it keeps no count."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...
