"""Previews from latents: their colours, and the image that a model is heading for. Imports torch."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from torch.nn.functional import avg_pool2d, interpolate

from zimage_stream.engines.base import Previews
from zimage_stream.engines.previews import encode_preview, preview_steps

log = logging.getLogger(__name__)

_SAMPLE_SIDE = 256
_BLOCKS = (16, 32)
_RIDGE = 1e-2
"""Weight of the penalty on large coefficients, relative to the number of samples. It keeps directions in
which the samples hardly differ from being given any colour."""

Capture = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Called after each step with the latents before it, the velocity that the model predicted for them, both of
shape (images, channels, height, width), and their noise level sigma, a tensor without dimensions."""


@dataclass(frozen=True, slots=True)
class ColourMap:
    """An affine map from the channels of a latent to a colour.

    Attributes:
        weights: of shape (channels, 3).
        bias: of shape (3,); colours are from 0 to 255.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]

    def picture(self, latents: NDArray[Any]) -> Image:
        """Return the RGB picture of one image's latents, with a pixel for each position.

        Args:
            latents: array of shape (channels, height, width), in the space in which the model denoises.
        """
        finite = np.nan_to_num(latents.astype(np.float32), posinf=0.0, neginf=0.0)
        colours = np.moveaxis(finite, 0, -1) @ self.weights + self.bias
        return fromarray(colours.round().clip(0, 255).astype(np.uint8))


def fit_colours(vae: Any, device: torch.device) -> ColourMap:
    """Fit the map by least squares to what the model's own decoder makes of latents.

    The latents are those that its encoder gives for two mosaics of random colours. They reach all colours,
    which those of one generated image do not: on the packaged checkpoint the error of a map that was fitted
    to the known-good image is twice as large. The colour of a position is the mean of the pixels that are
    decoded from it.

    Args:
        vae: the pipeline's autoencoder.
        device: where it runs.
    """
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    with torch.inference_mode():
        mosaics = _mosaics().to(device, vae.dtype)
        latents = (vae.encode(mosaics).latent_dist.mode() - shift) * scale
        decoded = vae.decode(latents / scale + shift, return_dict=False)[0]
        colours = avg_pool2d((decoded.float().clamp(-1, 1) + 1) * 127.5, _SAMPLE_SIDE // latents.shape[-1])
    known = _rows(latents)
    known = np.hstack([known, np.ones((len(known), 1))])
    penalty = np.eye(known.shape[1]) * _RIDGE * len(known)
    penalty[-1, -1] = 0.0
    fitted = np.linalg.solve(known.T @ known + penalty, known.T @ _rows(colours)).astype(np.float32)
    return ColourMap(fitted[:-1], fitted[-1])


def _mosaics() -> torch.Tensor:
    """Two pictures of random colours in blocks, as the encoder takes them: (2, 3, side, side), -1 to 1."""
    generator = torch.Generator("cpu").manual_seed(0)
    sides = [_SAMPLE_SIDE // block for block in _BLOCKS]
    blocks = [torch.rand((1, 3, side, side), generator=generator) * 2 - 1 for side in sides]
    return torch.cat([interpolate(each, size=(_SAMPLE_SIDE, _SAMPLE_SIDE)) for each in blocks])


def _rows(pictures: torch.Tensor) -> NDArray[np.float64]:
    """One row for each position: from (pictures, channels, height, width) to (positions, channels)."""
    rows: NDArray[np.float64] = pictures.movedim(1, -1).flatten(0, 2).double().cpu().numpy()
    return rows


class WatchedScheduler:
    """Takes the place of a scheduler's ``step``, and shows what each step is made from.

    The callback of diffusers gets neither the velocity nor, at the first step, the latents before it.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._step = scheduler.step
        self._capture: Capture | None = None
        scheduler.step = self

    @contextmanager
    def seen_by(self, capture: Capture | None) -> Iterator[None]:
        """Show the steps to this function, as long as the context is open. What it raises is only logged."""
        self._capture = capture
        try:
            yield
        finally:
            self._capture = None

    def __call__(self, velocity: torch.Tensor, timestep: Any, sample: torch.Tensor, **options: Any) -> Any:
        stepped = self._step(velocity, timestep, sample, **options)
        if self._capture is not None:
            try:
                self._capture(sample, velocity, self._scheduler.sigmas[self._scheduler.step_index - 1])
            except Exception as error:
                # If the device is broken, the generation fails and reports it.
                log.debug("a preview is left out: %s", error)
        return stepped


class LatentPreviews:
    """The previews of one generation.

    A preview shows the clean image that the model predicts at that step: with flow matching, the latents less
    their noise, ``x - sigma * v``. The engine's thread only queues a copy of that to the host, two bytes for
    each number. Whoever gets the preview has it converted and encoded, on a thread of its own.

    Args:
        steps: number of steps of the generation.
        previews: what is wanted.
    """

    def __init__(self, colours: ColourMap, steps: int, previews: Previews) -> None:
        self._colours = colours
        self._show = previews.show
        self._due: dict[int, list[int]] = defaultdict(list)
        for index, count in enumerate(previews.counts):
            for step in preview_steps(steps, count):
                self._due[step].append(index)
        self._step = 0
        self._copied: dict[int, list[tuple[int, torch.Tensor]]] = {}

    def capture(self, sample: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> None:
        """Queue copies of what this step's previews need; see :data:`Capture`."""
        self._step += 1
        copies = []
        for index in self._due.get(self._step, ()):
            clean = (sample[index] - sigma * velocity[index]).half()
            host = torch.empty(clean.shape, dtype=clean.dtype, pin_memory=clean.is_cuda)
            copies.append((index, host.copy_(clean, non_blocking=True)))
        self._copied[self._step] = copies

    def show(self, step: int) -> None:
        """Hand out the previews of a step that the device has done."""
        for index, latents in self._copied.pop(step, ()):
            self._show(index, step, partial(_encode, self._colours, latents))


def _encode(colours: ColourMap, latents: torch.Tensor) -> bytes:
    return encode_preview(colours.picture(latents.numpy()))
