"""An engine that takes a given time and draws its parameters, for tests and benchmarks, including users' own.

The time of one 1024x1024 image at 8 steps is configured. Other images scale with area and steps, and batches
with the gain that was measured on a real card (Qwen-Image on an H200: none at 1024x1024; at 512x512 a factor
of 1.82 for 2 images, 2.77 for 4 and 3.14 for 8). Equal specs give equal images.

    engine = SimulatedEngine(0.05, faults={"poison": Fault.parse("raise")})
    engine.generate([ImageSpec("a heron", 512, 512, 8, 0.0, seed=1)])

Faults are injected by directives: a mapping from a substring of the prompt to a fault, which is passed to the
constructor (from the setting ``engine.simulated_faults``). A prompt alone never causes a fault.
"""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from zimage_stream.engines.base import ImageSpec, Previews, Stepped, never
from zimage_stream.engines.previews import encode_preview, preview_steps
from zimage_stream.engines.scenery import SIDE, scenery
from zimage_stream.errors import (
    ContextLostError,
    EngineError,
    GenerationCancelledError,
    OutOfMemoryError,
    RequestError,
)
from zimage_stream.settings import EngineSettings
from zimage_stream.simulated_faults import Fault, FaultKind

_REFERENCE_PIXELS, _REFERENCE_STEPS = 1024 * 1024, 8
_HANG_S = 86_400.0
_CANCELLABLE_S = 0.1
_GAIN_OF_SMALL = ((1, 1.0), (2, 1.82), (4, 2.77), (8, 3.14))
_SMALL_PIXELS = 512 * 512
_CHARACTERS_A_TOKEN = 4
_MARGIN, _LINE = 3, 11
_OUTLINE = ((-1, 0, "black"), (1, 0, "black"), (0, -1, "black"), (0, 1, "black"))


def service_seconds(specs: Sequence[ImageSpec], reference_s: float) -> float:
    """Return the time that a batch takes, in seconds.

    Args:
        specs: specs with equal sizes and steps.
        reference_s: time of one 1024x1024 image at 8 steps, in seconds.
    """
    if not specs:
        return 0.0
    pixels = specs[0].width * specs[0].height
    one = reference_s * pixels / _REFERENCE_PIXELS * specs[0].steps / _REFERENCE_STEPS
    return one * len(specs) / _gain(len(specs), pixels)


def _gain(size: int, pixels: int) -> float:
    """Return the speedup of a batch over single images, interpolated linearly between measurements."""
    if pixels > _SMALL_PIXELS:
        return 1.0
    for (low, gain_low), (high, gain_high) in pairwise(_GAIN_OF_SMALL):
        if size <= high:
            return gain_low + (gain_high - gain_low) * (size - low) / (high - low)
    return _GAIN_OF_SMALL[-1][1]


class SimulatedEngine:
    """The simulated engine; see the module's docstring.

    Args:
        reference_s: time of one 1024x1024 image at 8 steps, in seconds.
        faults: faults by substring of the prompt.
        salt: a different salt gives different pixels for equal specs, as another card or driver would.
        scenic: use a background that is as hard to encode as a photograph, instead of a grid of colours.
        sleep, clock: replacements for ``time.sleep`` and ``time.monotonic``.
    """

    model = "simulated"
    model_revision = ""

    def __init__(
        self,
        reference_s: float = 0.32,
        faults: Mapping[str, Fault] | None = None,
        salt: str = "",
        scenic: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reference_s = reference_s
        self._faults = dict(faults or {})
        self._salt = salt
        self._scenic = scenic
        self._sleep = sleep
        self._clock = clock
        self._leaked = 0

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> SimulatedEngine:
        """Create the engine from the settings."""
        faults = {piece: Fault.parse(text) for piece, text in settings.simulated_faults.items()}
        return cls(settings.simulated_ms / 1e3, faults, settings.simulated_salt, settings.simulated_scenery)

    def load(self) -> None:
        """Create the scenery, if it is used; nothing else needs loading."""
        if self._scenic:
            scenery()

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def idle(self) -> None:
        """Do nothing: there is nothing to release."""

    def device_memory(self) -> Mapping[str, int]:
        """Return the memory leaked by the fault ``leak``, the only memory that is simulated."""
        return {"allocated": self._leaked, "reserved": self._leaked} if self._leaked else {}

    def count_tokens(self, prompt: str) -> int | None:
        """Estimate the number of tokens as one per four characters."""
        return -(-len(prompt) // _CHARACTERS_A_TOKEN)

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image.Image]:
        """See :class:`~zimage_stream.engines.base.PreviewingEngine`; the steps are equally long.

        Previews show the finished image.
        """
        for spec in specs:
            for fault in self._faults_of(spec):
                self._inject(fault, spec, len(specs))
        # The time for drawing is included: a real device would not use the CPU for it.
        began, takes_s = self._clock(), service_seconds(specs, self._reference_s)
        images = [self._draw(spec) for spec in specs]
        steps = specs[0].steps if specs and (stepped is not None or previews is not None) else 0
        for step in range(1, steps + 1):
            self._sleep_until(began + takes_s * step / steps, cancelled)
            if previews is not None:
                _show(images, step, steps, previews)
            if stepped is not None:
                stepped(step, steps)
        self._sleep_until(began + takes_s, cancelled)
        return images

    def _sleep_until(self, end: float, cancelled: Callable[[], bool]) -> None:
        while (left := end - self._clock()) > 0:
            if cancelled():
                raise GenerationCancelledError("the images are no longer wanted")
            self._sleep(min(left, _CANCELLABLE_S))

    def _faults_of(self, spec: ImageSpec) -> list[Fault]:
        return [fault for piece, fault in self._faults.items() if piece in spec.prompt]

    def _draw(self, spec: ImageSpec) -> Image.Image:
        image = draw(spec, self._salt, self._scenic)
        if any(fault.kind is FaultKind.CORRUPT for fault in self._faults_of(spec)):
            return image.crop((0, 0, spec.width, spec.height // 2))
        return image

    def _inject(self, fault: Fault, spec: ImageSpec, batch: int) -> None:
        match fault.kind:
            case FaultKind.SLOW:
                self._sleep(fault.number)
            case FaultKind.HANG:
                self._sleep(_HANG_S)
            case FaultKind.OOM if batch > fault.number:
                raise OutOfMemoryError(f"a batch of {batch} does not fit (simulated)")
            case FaultKind.RAISE:
                raise EngineError("generation failed (simulated)")
            case FaultKind.REFUSE if batch > 1:
                # As with a real pipeline, the request at fault is identified only when it runs alone.
                raise EngineError("a batch failed (simulated)")
            case FaultKind.REFUSE:
                raise RequestError("prompt", "prompts that this engine can draw (simulated)", spec.prompt)
            case FaultKind.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultKind.LEAK:
                self._leaked += int(fault.number * 2**20)
            case FaultKind.LOST:
                raise ContextLostError("the device context is lost (simulated)")


def _show(images: Sequence[Image.Image], step: int, steps: int, previews: Previews) -> None:
    for index, (image, count) in enumerate(zip(images, previews.counts, strict=True)):
        if step in preview_steps(steps, count):
            previews.show(index, step, partial(encode_preview, image))


@cache
def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default_imagefont()


def draw(spec: ImageSpec, salt: str = "", scenic: bool = False) -> Image.Image:
    """Draw an image for a spec: a grid of colours or scenery chosen by its digest, and its parameters."""
    digest = hashlib.sha256(repr((spec, salt)).encode()).digest()
    size = spec.width, spec.height
    if scenic:
        left = int.from_bytes(digest[:2]) % max(1, SIDE - size[0])
        top = int.from_bytes(digest[2:4]) % max(1, SIDE - size[1])
        image = scenery().crop((left, top, left + size[0], top + size[1]))
    else:
        image = Image.frombytes("RGB", (4, 2), digest[:24]).resize(size, Image.Resampling.NEAREST)
    # Pillow's built-in font has no Chinese characters; the image's metadata contain the full prompt.
    prompt = spec.prompt.encode("ascii", "replace").decode()
    lines = (
        f"{spec.width}x{spec.height}",
        f"{spec.steps} steps",
        f"guidance {spec.guidance_scale:g}",
        f"seed {spec.seed}",
        " ".join(prompt.split())[: spec.width // 6],
    )
    words = Image.new("1", (spec.width, len(lines) * _LINE))
    pen = ImageDraw.Draw(words)
    for number, line in enumerate(lines):
        pen.text((0, number * _LINE), line, fill=1, font=_font())
    # An outline keeps the text readable on any colour; Pillow's own outline takes ten times as long.
    for across, down, colour in (*_OUTLINE, (0, 0, "white")):
        image.paste(colour, (_MARGIN + across, _MARGIN + down), words)
    return image
