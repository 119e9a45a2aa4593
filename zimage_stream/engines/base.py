"""The interface of engines, which generate images from specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from PIL.Image import Image

MAX_PROMPT_TOKENS = 512

Stepped = Callable[[int, int], None]
"""Callback for a generation's steps: called with the number of steps done, and of steps in all."""

Encode = Callable[[], bytes]
"""Function that makes a preview: a JPEG of at most 256 pixels a side and 32 KiB. It takes milliseconds, so it
is called on another thread than the engine's. It may raise any exception; then there is no preview."""


@dataclass(frozen=True, slots=True)
class Previews:
    """The previews that are wanted of a batch.

    Attributes:
        counts: how many of each spec, 0 to 3. They are spread evenly over the steps.
        show: called on the engine's thread with the index of the spec, the number of steps done, and what
            makes the preview, before ``stepped`` is called for that step. It returns at once and raises
            nothing.
    """

    counts: Sequence[int]
    show: Callable[[int, int, Encode], None]


def never() -> bool:
    """Return False: the ``cancelled`` callback of a generation that is never cancelled."""
    return False


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """The complete specification of one image: equal specs give equal images on the same engine.

    ``width`` and ``height`` are in pixels; ``guidance_scale`` is 0 for Turbo.
    """

    prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int


class Engine(Protocol):
    """An image generator, owned by one thread: only that thread calls all methods except the following.

    :meth:`count_tokens` and :meth:`device_memory` may be called from another thread at any time after
    :meth:`load`. An engine that can tell its steps implements :class:`SteppingEngine`.
    """

    @property
    def model(self) -> str:
        """Name of the model, as it appears in results."""
        ...

    @property
    def model_revision(self) -> str:
        """Pinned revision of the model, or ``""`` if there is none."""
        ...

    def load(self) -> None:
        """Load the model and warm it up, so that the first request takes no longer than the others."""
        ...

    def generate(self, specs: Sequence[ImageSpec], cancelled: Callable[[], bool] = never) -> list[Image]:
        """Generate one RGB image per spec, in order.

        Args:
            specs: the specs, with equal width, height, steps and guidance scale.
            cancelled: called between steps; True cancels the generation.

        Raises:
            GenerationCancelledError: ``cancelled`` returned True.
            RequestError: the spec can never be generated (only for a batch of one).
            OutOfMemoryError: the batch does not fit into memory; a smaller one may.
            ContextLostError: the device context is lost, and the process must end.
            EngineError: the generation failed for another reason; the engine can continue.
        """
        ...

    def idle(self) -> None:
        """Release memory, if useful; called about once a second while there is nothing to generate."""
        ...

    def count_tokens(self, prompt: str) -> int | None:
        """Count the prompt's tokens as the model sees them; ``None`` if no tokenizer is available."""
        ...

    def device_memory(self) -> Mapping[str, int]:
        """Return the ``allocated`` and ``reserved`` bytes of device memory; empty if unknown."""
        ...

    def close(self) -> None:
        """Release the device."""
        ...


class SteppingEngine(Engine, Protocol):
    """An engine that also reports its steps, so that workers can publish them as progress."""

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
    ) -> list[Image]:
        """Generate images, as :meth:`Engine.generate` does.

        Args:
            stepped: called on this thread after each step of the batch, 1 to the last; ``None`` if nobody
                wants to know. It returns at once and raises nothing.
        """
        ...


class PreviewingEngine(SteppingEngine, Protocol):
    """An engine that also makes previews of the images that it is generating."""

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        """Generate images, as :meth:`SteppingEngine.generate` does.

        Args:
            previews: the previews that are wanted; ``None`` if none are. A preview that cannot be made is
                left out. The images are the same as without previews.
        """
        ...


def reports_steps(engine: Engine) -> TypeGuard[SteppingEngine]:
    """Whether the engine's ``generate`` takes the argument ``stepped``."""
    return _takes(engine, "stepped")


def makes_previews(engine: Engine) -> TypeGuard[PreviewingEngine]:
    """Whether the engine's ``generate`` takes the arguments ``stepped`` and ``previews``."""
    return _takes(engine, "stepped") and _takes(engine, "previews")


def _takes(engine: Engine, name: str) -> bool:
    try:
        return name in inspect.signature(engine.generate).parameters
    except (TypeError, ValueError):
        # Some callables have no signature that can be read.
        return False
