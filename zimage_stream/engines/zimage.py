"""Z-Image through diffusers' own pipeline. Imports torch: import it only to create the engine."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.utils import logging as diffusers_logging
from PIL.Image import Image
from transformers.utils import logging as transformers_logging

from zimage_stream.engines.base import MAX_PROMPT_TOKENS, ImageSpec
from zimage_stream.engines.failures import failure_of
from zimage_stream.errors import EngineError, OutOfMemoryError, SettingsError
from zimage_stream.settings import EngineSettings

log = logging.getLogger(__name__)

TINY = "tiny"
WARM_UP = ImageSpec("a red circle on a white background", 64, 64, 8, 0.0, 0)
TILING_PIXELS = 1536 * 1536
"""Above this a picture is decoded in tiles: the decoder's peak would exceed the transformer's."""
UNUSED_CACHE_BYTES = 2 << 30
"""Memory that torch keeps reserved beyond what it uses before it is given back."""


class ZImageEngine:
    """See :class:`~zimage_stream.engines.base.Engine`. One card, one thread.

    Raises:
        SettingsError: the device, the model's place or a switch is not available here.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = _device(settings.device)
        self._dtype = _dtype(settings.dtype, self._device)
        tiny = settings.model == TINY
        self._source = str(Path(__file__).parent / "tiny") if tiny else settings.model
        self.model = "tiny-zimage" if tiny else settings.model
        self.model_revision = settings.revision or ""
        if settings.offload != "none" and self._device.type != "cuda":
            raise SettingsError(f"ZIMAGE_ENGINE__OFFLOAD: got {settings.offload!r}, takes none without a GPU")
        if settings.offload != "none" and not importlib.util.find_spec("accelerate"):
            raise SettingsError(f"ZIMAGE_ENGINE__OFFLOAD: got {settings.offload!r}, which needs accelerate")
        self._pipeline: Any = None
        self._tokenizer: Any = None
        self._tokenizing = threading.Lock()
        self._away = False
        self._used = time.monotonic()

    def load(self) -> None:
        """Load the weights, move them to the device and make one small picture."""
        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        started = time.monotonic()
        try:
            pipeline = ZImagePipeline.from_pretrained(
                self._source,
                revision=self._settings.revision,
                dtype=self._dtype,
                # A folder has everything; asking a hub about it would only fail where there is no network.
                local_files_only=Path(self._source).is_dir() or "HF_HUB_OFFLINE" in os.environ,
            )
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"ZIMAGE_ENGINE__MODEL: got {self._settings.model!r}, which cannot be loaded: {error}"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        # The pipeline's own is used by the engine's thread; tokenizers are not safe to share.
        self._tokenizer = copy.deepcopy(pipeline.tokenizer)
        self._switch(pipeline)
        self._pipeline = pipeline
        self.generate([WARM_UP])
        log.info("%s loaded on %s in %.1f s", self.model, self._device, time.monotonic() - started)

    def generate(self, specs: Sequence[ImageSpec]) -> list[Image]:
        """See :class:`~zimage_stream.engines.base.Engine`."""
        first = specs[0]
        self._come_back()
        if first.width * first.height > TILING_PIXELS:
            self._pipeline.vae.enable_tiling()
        else:
            self._pipeline.vae.disable_tiling()
        try:
            with torch.inference_mode():
                images = self._pipeline(
                    prompt=[spec.prompt for spec in specs],  # a new list: encode_prompt writes into it
                    height=first.height,
                    width=first.width,
                    num_inference_steps=first.steps,
                    guidance_scale=first.guidance_scale,
                    generator=[torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
                    max_sequence_length=MAX_PROMPT_TOKENS,
                ).images
        except Exception as error:
            failure = failure_of(error)
            if isinstance(failure, OutOfMemoryError):
                # The traceback holds the tensors that did not fit.
                error.__traceback__ = None
                self._release_cache(always=True)
            raise failure from error
        self._release_cache()
        self._used = time.monotonic()
        if len(images) != len(specs):
            raise EngineError(f"the pipeline made {len(images)} pictures of {len(specs)}")
        return list(images)

    def count_tokens(self, prompt: str) -> int | None:
        """Length of the prompt within the model's chat template."""
        if self._tokenizer is None:
            return None
        messages = [{"role": "user", "content": prompt}]
        with self._tokenizing:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            return len(self._tokenizer(text).input_ids)

    def idle(self) -> None:
        """Move the weights off the device if nothing was asked for as long as the settings say."""
        limit = self._settings.idle_release_s
        if limit and not self._away and time.monotonic() - self._used >= limit:
            self._pipeline.to("cpu")
            self._away = True
            self._release_cache(always=True)
            log.info("idle for %.0f s: the weights are off the device", limit)

    def close(self) -> None:
        """Release the device."""
        self._pipeline = None
        self._release_cache(always=True)

    def _come_back(self) -> None:
        if self._away:
            self._pipeline.to(self._device)
            self._away = False

    def _switch(self, pipeline: Any) -> None:
        """Bring the pipeline to the device the way the settings say."""
        settings = self._settings
        match settings.offload:
            case "model":
                pipeline.enable_model_cpu_offload(device=self._device)
            case "sequential":
                pipeline.enable_sequential_cpu_offload(device=self._device)
            case "text_encoder":
                from accelerate import cpu_offload

                pipeline.transformer.to(self._device)
                pipeline.vae.to(self._device)
                cpu_offload(pipeline.text_encoder, execution_device=self._device)
            case _:
                pipeline.to(self._device)
        if settings.attention is not None:
            try:
                pipeline.transformer.set_attention_backend(settings.attention)
            except (ValueError, RuntimeError, ImportError) as error:
                raise SettingsError(
                    f"ZIMAGE_ENGINE__ATTENTION: got {settings.attention!r}, which this installation "
                    f"cannot do: {error}"
                ) from error
        if settings.compile:
            pipeline.transformer.compile_repeated_blocks(fullgraph=True)

    def _release_cache(self, always: bool = False) -> None:
        if self._device.type != "cuda":
            return
        unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        if always or unused > UNUSED_CACHE_BYTES:
            torch.cuda.empty_cache()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"ZIMAGE_ENGINE__DEVICE: got {name!r}, takes auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"ZIMAGE_ENGINE__DEVICE: got {name!r}, but torch sees no GPU here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype
