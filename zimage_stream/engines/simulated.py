"""An engine that takes a stated time and draws its parameters: for tests and benchmarks, users' own included.

The time of one 1024x1024 picture at 8 steps is given; others scale by area and steps, and a batch by
what batching gained on a real card (Qwen-Image on an H200: nothing at 1024x1024; at 512x512 1.82 times
at 2, 2.77 at 4, 3.14 at 8). Pictures are equal for equal specs.

Faults are played by directive: a mapping from a piece of prompt to what happens to requests that have
it, given when the engine is made. A prompt by itself never does anything here.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from zimage_stream.engines.base import ImageSpec
from zimage_stream.errors import ContextLostError, EngineError, OutOfMemoryError, RequestError, SettingsError
from zimage_stream.settings import EngineSettings

_REFERENCE_PIXELS, _REFERENCE_STEPS = 1024 * 1024, 8
_HANG_S = 86_400.0
_GAIN_OF_SMALL = ((1, 1.0), (2, 1.82), (4, 2.77), (8, 3.14))
_SMALL_PIXELS = 512 * 512
_CHARACTERS_A_TOKEN = 4


class FaultKind(StrEnum):
    """What a directive does to a request."""

    SLOW = "slow"
    HANG = "hang"
    OOM = "oom"
    RAISE = "raise"
    REFUSE = "refuse"
    KILL = "kill"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Fault:
    """A directive: ``slow:3`` takes 3 seconds more, ``oom:2`` fails in batches above 2; others take no number.

    ``hang`` never ends, ``raise`` fails, ``refuse`` says the request is at fault, ``kill`` ends the
    process by SIGKILL, ``lost`` poisons the device context.
    """

    kind: FaultKind
    number: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read a directive. Raises SettingsError naming what it takes."""
        match = re.fullmatch(r"(?P<kind>[a-z]+)(:(?P<number>\d+(\.\d+)?))?", text)
        kinds = ", ".join(FaultKind)
        if match is None or match["kind"] not in set(FaultKind):
            raise SettingsError(f"ZIMAGE_ENGINE__SIMULATED_FAULTS: got {text!r}, takes one of {kinds}")
        kind = FaultKind(match["kind"])
        takes_number = kind in (FaultKind.SLOW, FaultKind.OOM)
        if takes_number != (match["number"] is not None):
            form = f"{kind}:NUMBER" if takes_number else f"{kind} without a number"
            raise SettingsError(f"ZIMAGE_ENGINE__SIMULATED_FAULTS: got {text!r}, takes {form}")
        return cls(kind, float(match["number"] or 0))


def service_seconds(specs: Sequence[ImageSpec], reference_s: float) -> float:
    """How long a batch takes.

    Args:
        specs: of one shape.
        reference_s: seconds of one 1024x1024 picture at 8 steps.
    """
    if not specs:
        return 0.0
    pixels = specs[0].width * specs[0].height
    one = reference_s * pixels / _REFERENCE_PIXELS * specs[0].steps / _REFERENCE_STEPS
    return one * len(specs) / _gain(len(specs), pixels)


def _gain(size: int, pixels: int) -> float:
    if pixels > _SMALL_PIXELS:
        return 1.0
    return next((gain for reached, gain in reversed(_GAIN_OF_SMALL) if size >= reached), 1.0)


class SimulatedEngine:
    """See the module.

    Args:
        reference_s: seconds of one 1024x1024 picture at 8 steps.
        faults: directives by piece of prompt.
        salt: other salts give other pixels for equal specs, as another card or driver does.
        sleep: how time is spent.
    """

    model = "simulated"
    model_revision = ""

    def __init__(
        self,
        reference_s: float = 0.32,
        faults: Mapping[str, Fault] | None = None,
        salt: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._reference_s = reference_s
        self._faults = dict(faults or {})
        self._salt = salt
        self._sleep = sleep

    @classmethod
    def from_settings(cls, settings: EngineSettings) -> SimulatedEngine:
        """As the settings say. Raises SettingsError for a directive that is none."""
        faults = {piece: Fault.parse(text) for piece, text in settings.simulated_faults.items()}
        return cls(settings.simulated_ms / 1e3, faults, settings.simulated_salt)

    def load(self) -> None:
        """There is nothing to load."""

    def close(self) -> None:
        """There is nothing to release."""

    def idle(self) -> None:
        """There is nothing to release."""

    def count_tokens(self, prompt: str) -> int | None:
        """About one token for four characters."""
        return -(-len(prompt) // _CHARACTERS_A_TOKEN)

    def generate(self, specs: Sequence[ImageSpec]) -> list[Image.Image]:
        """See :class:`~zimage_stream.engines.base.Engine`."""
        for spec in specs:
            for piece, fault in self._faults.items():
                if piece in spec.prompt:
                    self._play(fault, spec, len(specs))
        self._sleep(service_seconds(specs, self._reference_s))
        return [draw(spec, self._salt) for spec in specs]

    def _play(self, fault: Fault, spec: ImageSpec, batch: int) -> None:
        match fault.kind:
            case FaultKind.SLOW:
                self._sleep(fault.number)
            case FaultKind.HANG:
                self._sleep(_HANG_S)
            case FaultKind.OOM if batch > fault.number:
                raise OutOfMemoryError(f"a batch of {batch} does not fit (simulated)")
            case FaultKind.RAISE:
                raise EngineError("generation failed (simulated)")
            case FaultKind.REFUSE:
                raise RequestError("prompt", "what this engine can draw (simulated)", spec.prompt)
            case FaultKind.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultKind.LOST:
                raise ContextLostError("the device context is lost (simulated)")


def draw(spec: ImageSpec, salt: str = "") -> Image.Image:
    """A picture of the spec: its digest as a grid of colours, in the spec's size."""
    digest = hashlib.sha256(repr((spec, salt)).encode()).digest()
    grid = Image.frombytes("RGB", (4, 2), digest[:24])
    return grid.resize((spec.width, spec.height), Image.Resampling.NEAREST)
