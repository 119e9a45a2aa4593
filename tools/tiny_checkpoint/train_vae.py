"""Trains the autoencoder on fresh renders."""

from __future__ import annotations

import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.tiny_checkpoint.models import make_autoencoder
from tools.tiny_checkpoint.shapes import render
from zimage_stream.engines.tiny.captions import COMBINATIONS

log = logging.getLogger(__name__)

BATCH = 32
RATE = 2e-3
WARM_UP_STEPS = 100
KL_WEIGHT = 2e-4
ABSOLUTE_WEIGHT = 0.3
"""Weight of the absolute error, relative to the squared one: it keeps edges sharp."""
MEASURED = 256


def pictures(combinations: list[tuple[str, str, str]], rng: random.Random) -> torch.Tensor:
    """Render images as [n, 3, 64, 64], -1 to 1."""
    rendered = np.stack([render(*combination, rng) for combination in combinations])
    return torch.from_numpy(rendered).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(steps: int, folder: Path) -> None:
    """Train the autoencoder, set the latents' shift and scale to the measured values, and save it."""
    torch.manual_seed(0)
    rng = random.Random(1)
    vae = make_autoencoder()
    optimiser = torch.optim.AdamW(vae.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    started = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, steps)
        seen = pictures(rng.choices(COMBINATIONS, k=BATCH), rng)
        posterior = vae.encode(seen).latent_dist
        error = vae.decode(posterior.sample()).sample - seen
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.pow(2).mean() + ABSOLUTE_WEIGHT * error.abs().mean() + KL_WEIGHT * kl
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            log.info("%d loss %.4f %.0f s", step + 1, loss.item(), time.monotonic() - started)
    _finish(vae.eval(), rng, folder)


def _rate(step: int, steps: int) -> float:
    return RATE * min(1, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 1e-5


@torch.no_grad()
def _finish(vae: Any, rng: random.Random, folder: Path) -> None:
    seen = pictures(rng.choices(COMBINATIONS, k=MEASURED), rng)
    latents = vae.encode(seen).latent_dist.mean
    error = (vae.decode(latents).sample - seen).pow(2).mean((1, 2, 3))
    log.info("PSNR %.1f dB", (10 * torch.log10(4 / error)).mean().item())
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    vae.save_pretrained(folder)
