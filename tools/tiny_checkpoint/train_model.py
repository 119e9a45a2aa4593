"""Trains the transformer and the text encoder together, by flow matching on cached latents."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ZImagePipeline
from transformers import AutoTokenizer

from tools.tiny_checkpoint.models import (
    make_scheduler,
    make_text_encoder,
    make_transformer,
    random_caption,
)
from tools.tiny_checkpoint.train_vae import pictures
from zimage_stream.engines.tiny.captions import COMBINATIONS

log = logging.getLogger(__name__)

BATCH = 64
RATE = 1.2e-3
WARM_UP_STEPS = 150
EXAMPLES = 40_000
AVERAGING = 0.998
_BEFORE, _AFTER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

Combination = tuple[str, str, str]

# The libraries' loaders carry no types.
_autoencoder: Any = AutoencoderKL
_pipeline: Any = ZImagePipeline
_tokenizer: Any = AutoTokenizer


class Trainer:
    """The models and the examples for their training.

    Args:
        tokenizer: folder of the tokenizer.
        vae: folder of the trained autoencoder.
        examples: number of renders to cache.
    """

    def __init__(self, tokenizer: Path, vae: Path, examples: int = EXAMPLES) -> None:
        torch.manual_seed(0)
        self._rng = random.Random(2)
        self._tokenizer = _tokenizer.from_pretrained(tokenizer)
        self._vae = _autoencoder.from_pretrained(vae).eval()
        self._text_encoder = make_text_encoder(len(self._tokenizer))
        self._transformer = make_transformer()
        for token in (self._transformer.x_pad_token, self._transformer.cap_pad_token):
            torch.nn.init.normal_(token, std=0.02)
        # Starting from zero output is more stable than starting from noise.
        last = self._transformer.all_final_layer["2-1"].linear
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
        models = (self._transformer, self._text_encoder)
        self._parameters = [p for model in models for p in model.parameters() if p.requires_grad]
        self._combinations: list[Combination] = self._rng.choices(COMBINATIONS, k=examples)
        self._latents = self._encode()

    def train(self, steps: int) -> None:
        """Train the models, and set their weights to the running average at the end."""
        optimiser = torch.optim.AdamW(self._parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
        average = [p.detach().clone() for p in self._parameters]
        started = time.monotonic()
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = _rate(step, steps)
            loss = self._loss()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
            optimiser.step()
            kept = min(AVERAGING, (1 + step) / (10 + step))
            with torch.no_grad():
                for mean, parameter in zip(average, self._parameters, strict=True):
                    mean.lerp_(parameter.detach(), 1 - kept)
            if (step + 1) % 100 == 0:
                log.info("%d loss %.4f %.0f s", step + 1, loss.item(), time.monotonic() - started)
        with torch.no_grad():
            for mean, parameter in zip(average, self._parameters, strict=True):
                parameter.copy_(mean)

    def save(self, folder: Path) -> None:
        """Save the whole pipeline in bfloat16."""
        pipeline = _pipeline(
            scheduler=make_scheduler(),
            vae=self._vae,
            text_encoder=self._text_encoder.eval(),
            tokenizer=self._tokenizer,
            transformer=self._transformer.eval(),
        )
        pipeline.to(torch.bfloat16).save_pretrained(folder)

    @torch.no_grad()
    def _encode(self) -> torch.Tensor:
        config = self._vae.config
        means = [
            self._vae.encode(pictures(self._combinations[i : i + BATCH], self._rng)).latent_dist.mean
            for i in range(0, len(self._combinations), BATCH)
        ]
        latents: torch.Tensor = (torch.cat(means) - config.shift_factor) * config.scaling_factor
        return latents

    def _embed(self, captions: Sequence[str]) -> list[torch.Tensor]:
        """Embed captions as the pipeline embeds prompts, without the padding."""
        read = self._tokenizer(
            [_BEFORE + text + _AFTER for text in captions], padding=True, return_tensors="pt"
        )
        seen = read.attention_mask.bool()
        states = self._text_encoder(
            input_ids=read.input_ids, attention_mask=seen, output_hidden_states=True
        ).hidden_states[-2]
        return [state[kept] for state, kept in zip(states, seen, strict=True)]

    def _loss(self) -> torch.Tensor:
        chosen = torch.randint(len(self._combinations), (BATCH,))
        clean = self._latents[chosen]
        captions = [random_caption(self._combinations[i], self._rng) for i in chosen.tolist()]
        # Half of the noise levels are spaced by the scheduler's shift of 3, the other half evenly.
        level = torch.rand(BATCH)
        shift = torch.where(torch.rand(BATCH) < 0.5, 3.0, 1.0)
        sigma = shift * level / (1 + (shift - 1) * level)
        noise = torch.randn_like(clean)
        share = sigma[:, None, None, None]
        mixed = (1 - share) * clean + share * noise
        flow = self._transformer(
            list(mixed.unsqueeze(2).unbind(0)), 1 - sigma, self._embed(captions), return_dict=False
        )[0]
        made = torch.stack(flow).squeeze(2)
        # The pipeline negates the transformer's output, so its target is the direction from noise to image.
        return (made - (clean - noise)).pow(2).mean()


def _rate(step: int, steps: int) -> float:
    return RATE * min(1, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + 2e-5
