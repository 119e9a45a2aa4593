"""Z-Image with the pipeline of diffusers. Imports torch, so import this module only to create the engine."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ZImagePipeline
from diffusers.utils import logging as diffusers_logging
from PIL.Image import Image, fromarray
from transformers.utils import logging as transformers_logging

from zimage_stream.engines.base import MAX_PROMPT_TOKENS, ImageSpec, Previews, Stepped, never
from zimage_stream.engines.failures import failure_of
from zimage_stream.engines.latents import ColourMap, LatentPreviews, WatchedScheduler, fit_colours
from zimage_stream.engines.memory import UNUSED_CACHE_BYTES, DeviceMemory, memory_of
from zimage_stream.errors import EngineError, GenerationCancelledError, OutOfMemoryError, SettingsError
from zimage_stream.settings import EngineSettings

log = logging.getLogger(__name__)

TINY = "tiny"
TILING_PIXELS = 1536 * 1536
"""Size in pixels above which an image is decoded in tiles, because the decoder's peak memory would otherwise
exceed the transformer's."""

_WARM_UP_PROMPT = "a red circle on a white background"
_WARM_UP_STEPS = 2
_SMALLEST_SIDE = 64


class ZImageEngine:
    """The Z-Image engine on one device; see :class:`~zimage_stream.engines.base.Engine`.

    Args:
        memory: the device's memory; by default as torch reports it.
        clock: monotonic time in seconds, which measures idleness.

    Raises:
        SettingsError: the device or an option is not available here.
    """

    def __init__(
        self,
        settings: EngineSettings,
        memory: DeviceMemory | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._device = _device(settings.device)
        self._dtype = _dtype(settings.dtype, self._device)
        _check_offload(settings.offload, self._device)
        tiny = settings.model == TINY
        self._source = str(Path(__file__).parent / "tiny") if tiny else settings.model
        self.model = "tiny-zimage" if tiny else settings.model
        self.model_revision = settings.revision or ""
        self._memory = memory_of(self._device) if memory is None else memory
        self._clock = clock
        self._pipeline: Any = None
        self._decoded = DecodedCheck()
        self._scheduler: Any = None
        self._colours: ColourMap | None = None
        self._tokenizer: Any = None
        self._tokenizing = threading.Lock()
        self._away = False
        self._used = clock()

    def load(self) -> None:
        """Load the weights, move them to the device and generate a first image.

        Raises:
            SettingsError: the model cannot be loaded, or an option does not work here.
            EngineError: the first image could not be generated.
        """
        _silence(diffusers_logging)
        _silence(transformers_logging)
        started = time.monotonic()
        pipeline = self._read()
        pipeline.set_progress_bar_config(disable=True)
        # Tokenizers are not thread-safe, and the engine's thread uses that of the pipeline.
        self._tokenizer = copy.deepcopy(pipeline.tokenizer)
        pipeline.vae.decoder.register_forward_hook(self._decoded.note)
        self._scheduler = WatchedScheduler(pipeline.scheduler)
        self._pipeline = pipeline
        self._place()
        self._switch()
        self._warm_up()
        self._colours = _fit_colours(pipeline, self._device)
        log.info("%s loaded on %s in %.1f s", self.model, self._device, time.monotonic() - started)

    def generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool] = never,
        stepped: Stepped | None = None,
        previews: Previews | None = None,
    ) -> list[Image]:
        """See :class:`~zimage_stream.engines.base.PreviewingEngine`."""
        try:
            latents = _latent_previews(self._colours, specs[0].steps, previews)
            images = self._generate(specs, cancelled, stepped, latents)
            if self._memory.reserved() - self._memory.allocated() > UNUSED_CACHE_BYTES:
                self._memory.release()
        except Exception as error:
            failure = _failure(error)
            if not isinstance(failure, OutOfMemoryError | GenerationCancelledError):
                raise failure from error
        else:
            return images
        # Outside the except block the traceback has been dropped, and with it the tensors that it referenced.
        try:
            self._pipeline.maybe_free_model_hooks()
            self._memory.release()
        except Exception as error:
            raise _failure(error) from error
        raise failure

    def count_tokens(self, prompt: str) -> int | None:
        """Count the tokens of the prompt within the model's chat template."""
        if self._tokenizer is None:
            return None
        messages = [{"role": "user", "content": prompt}]
        with self._tokenizing:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            return len(self._tokenizer(text).input_ids)

    def device_memory(self) -> Mapping[str, int]:
        """See :class:`~zimage_stream.engines.base.Engine`."""
        reserved = self._memory.reserved()
        return {"allocated": self._memory.allocated(), "reserved": reserved} if reserved else {}

    def idle(self) -> None:
        """Move the weights off the device after the idle time in the settings."""
        limit = self._settings.idle_release_s
        if limit and not self._away and self._clock() - self._used >= limit:
            self._away = True
            before = self._memory.reserved()
            try:
                self._move(torch.device("cpu"))
                self._memory.release()
            except RuntimeError as error:
                # If the device is broken, the next batch will fail and report it.
                log.warning("could not move the weights off the device: %s", error)
                return
            freed = (before - self._memory.reserved()) / 1e9
            log.info("idle for %g s: moved the weights off the device, %.1f GB released", limit, freed)

    def close(self) -> None:
        """Release the device."""
        self._pipeline = None
        # With a lost context this fails too; the memory is released when the process ends.
        with contextlib.suppress(RuntimeError):
            self._memory.release()

    def _generate(
        self,
        specs: Sequence[ImageSpec],
        cancelled: Callable[[], bool],
        stepped: Stepped | None,
        previews: LatentPreviews | None,
    ) -> list[Image]:
        first = specs[0]
        if self._away:
            self._move(self._device)
            self._away = False
        self._used = self._clock()
        if first.width * first.height > TILING_PIXELS:
            self._pipeline.vae.enable_tiling()
        else:
            self._pipeline.vae.disable_tiling()
        self._decoded.clear()
        reporting = stepped is not None or previews is not None
        report = StepReports(first.steps, stepped, self._device, previews) if reporting else None
        with torch.inference_mode(), self._scheduler.seen_by(previews and previews.capture):
            decoded = self._pipeline(
                prompt=[spec.prompt for spec in specs],  # a new list: encode_prompt writes into it
                height=first.height,
                width=first.width,
                num_inference_steps=first.steps,
                guidance_scale=first.guidance_scale,
                # On the CPU, so that a seed gives the same noise on any device.
                generator=[torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
                max_sequence_length=MAX_PROMPT_TOKENS,
                callback_on_step_end=_between_steps(first.steps, cancelled, report),
                output_type="pt",
            ).images
            self._decoded.check()
            images = to_images(decoded)
        self._used = self._clock()
        return images

    def _read(self) -> Any:
        pipelines: Any = ZImagePipeline
        try:
            return pipelines.from_pretrained(
                self._source,
                revision=self._settings.revision,
                dtype=self._dtype,
                # A folder is complete; a request to the hub would only fail if there is no network.
                local_files_only=Path(self._source).is_dir(),
            )
        except Exception as error:
            # The libraries have many exceptions for files that are missing, truncated or of another model.
            raise SettingsError(
                f"ZIMAGE_ENGINE__MODEL: got {self._settings.model!r}, which cannot be loaded: {error}"
            ) from error

    def _place(self) -> None:
        """Move the weights to the device, or set up offloading, as the settings specify."""
        match self._settings.offload:
            case "model":
                self._pipeline.enable_model_cpu_offload(device=self._device)
            case "sequential":
                self._pipeline.enable_sequential_cpu_offload(device=self._device)
            case "text_encoder":
                from diffusers.hooks.group_offloading import apply_group_offloading

                # The one way to offload a single component that the pipeline's device detection supports.
                apply_group_offloading(
                    self._pipeline.text_encoder, onload_device=self._device, offload_type="leaf_level"
                )
                self._move(self._device)
            case "none":
                self._move(self._device)

    def _move(self, device: torch.device) -> None:
        """Move the components that stay on the device between batches."""
        match self._settings.offload:
            case "none":
                self._pipeline.to(device)
            case "text_encoder":
                self._pipeline.transformer.to(device)
                self._pipeline.vae.to(device)
            case _:
                pass

    def _switch(self) -> None:
        transformer, settings = self._pipeline.transformer, self._settings
        if settings.attention is not None:
            try:
                transformer.set_attention_backend(settings.attention)
            except Exception as error:
                raise SettingsError(
                    f"ZIMAGE_ENGINE__ATTENTION: got {settings.attention!r}, which this installation "
                    f"does not support: {error}"
                ) from error
        if settings.compile:
            # With dynamic=True one compilation serves all sizes; without it the ninth size would be an error.
            transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)

    def _warm_up(self) -> None:
        """Generate images of the model's native size, so that all lazy initialisation happens now."""
        side = _SMALLEST_SIDE
        if self._device.type == "cuda":
            natural = self._pipeline.vae.config.sample_size
            side = natural if natural * natural <= self._settings.max_pixels else _SMALLEST_SIDE
        spec = ImageSpec(_WARM_UP_PROMPT, side, side, _WARM_UP_STEPS, 0.0, 0)
        # A batch of one is compiled separately.
        sizes = (1, 2) if self._settings.compile and self._settings.max_batch > 1 else (1,)
        try:
            for size in sizes:
                self.generate([spec] * size)
        except OutOfMemoryError:
            raise
        except EngineError as error:
            switches = [name for name in ("attention", "compile") if getattr(self._settings, name)]
            if not switches:
                raise
            names = ", ".join(f"ZIMAGE_ENGINE__{name.upper()}" for name in switches)
            raise SettingsError(
                f"{names}: the first image failed with this setting; unset it: {error}"
            ) from error


class DecodedCheck:
    """Detects NaN and infinity in the decoder's output.

    After clamping to the range of an image they can no longer be detected: infinity becomes white and NaN
    black. Nothing waits for the device before :meth:`check`.
    """

    def __init__(self) -> None:
        self._finite: list[torch.Tensor] = []

    def clear(self) -> None:
        """Start a new batch."""
        self._finite.clear()

    def note(self, _: torch.nn.Module, __: Any, decoded: torch.Tensor) -> None:
        """Record the decoder's output; a forward hook, called for each tile of a large image.

        Args:
            decoded: tensor of shape (images, 3, height, width).
        """
        self._finite.append(torch.isfinite(decoded).flatten(1).all(1))

    def check(self) -> None:
        """Raise EngineError if an image contains NaN or infinity."""
        _check_finite(torch.stack(self._finite).all(0))
        self._finite.clear()


def _check_finite(finite: torch.Tensor) -> None:
    """Raise EngineError unless all images are finite. Waits for the device.

    Args:
        finite: boolean tensor of shape (images,).
    """
    broken = (~finite).nonzero().flatten().tolist()
    if broken:
        raise EngineError(f"images {broken} of a batch contain NaN or infinity")


def to_images(decoded: torch.Tensor) -> list[Image]:
    """Convert the decoder's output to Pillow images, with the same bytes as diffusers produces.

    The conversion to bytes happens on the device: diffusers does it on the CPU, with four times as many bytes
    to copy, while the device waits.

    Args:
        decoded: tensor of shape (images, 3, height, width), with values from 0 to 1.
    """
    pixels = (decoded.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    # Copies from the device to pinned memory run at full speed; torch reuses the pinned memory.
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=pixels.is_cuda).copy_(pixels)
    return [fromarray(image) for image in host.numpy()]


class StepReports:
    """Reports steps once the device has done them.

    On a GPU, Python is ahead of the device, by the whole generation if a step is a single graph. So a step is
    reported after the next one has been queued: the device always has work, and Python is ahead by one step.

    Args:
        steps: number of steps of the generation.
        stepped: receives the reports; ``None`` if only previews are wanted.
        previews: the previews of the generation, each shown before its step is reported.
    """

    def __init__(
        self,
        steps: int,
        stepped: Stepped | None,
        device: torch.device,
        previews: LatentPreviews | None = None,
    ) -> None:
        self._steps = steps
        self._stepped = stepped
        self._device = device
        self._previews = previews
        self._queued: list[torch.cuda.Event] = []
        self._reported = 0

    def queued(self) -> None:
        """Note that a step has been queued, and report those before it. Waits for the device to do them."""
        if self._device.type != "cuda":
            self._report()
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._queued.append(event)
        if len(self._queued) > 1:
            self._queued.pop(0).synchronize()
            self._report()

    def finished(self) -> None:
        """Report the last steps: the device has done them."""
        while self._reported < self._steps:
            self._report()

    def _report(self) -> None:
        self._reported += 1
        if self._previews is not None:
            self._previews.show(self._reported)
        if self._stepped is not None:
            self._stepped(self._reported, self._steps)


def _between_steps(
    steps: int, cancelled: Callable[[], bool], report: StepReports | None
) -> Callable[..., dict[str, Any]]:
    """Build the callback that diffusers runs after each step.

    It ends a generation that is cancelled, and one whose latents are NaN or infinity, which would give a
    black image, and reports steps.
    """

    def check(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if cancelled():
            raise GenerationCancelledError("the images are no longer wanted")
        # Only at the last step, because the check waits for the device.
        if step == steps - 1:
            _check_finite(torch.isfinite(tensors["latents"]).flatten(1).all(1))
            if report is not None:
                report.finished()
        elif report is not None:
            report.queued()
        return {}

    return check


def _fit_colours(pipeline: Any, device: torch.device) -> ColourMap | None:
    """The colours of the model's latents; ``None`` if they cannot be found out."""
    try:
        colours = fit_colours(pipeline.vae, device)
        pipeline.maybe_free_model_hooks()
    except Exception as error:
        # Images can be generated all the same.
        log.warning("this model makes no previews: %s", error)
        return None
    return colours


def _latent_previews(colours: ColourMap | None, steps: int, wanted: Previews | None) -> LatentPreviews | None:
    return LatentPreviews(colours, steps, wanted) if colours is not None and wanted is not None else None


def _silence(library: Any) -> None:
    """Silence a library's logging and progress bars; its failures are raised anyway."""
    library.set_verbosity_error()
    library.disable_progress_bar()


def _failure(error: Exception) -> EngineError | GenerationCancelledError:
    # A new exception, because the one raised inside the pipeline references its tensors.
    if isinstance(error, EngineError | GenerationCancelledError):
        return type(error)(str(error))
    return failure_of(type(error).__name__, str(error))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rule = "takes auto, cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingsError(f"ZIMAGE_ENGINE__DEVICE: got {name!r}, {rule}") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingsError(f"ZIMAGE_ENGINE__DEVICE: got {name!r}, {rule}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"ZIMAGE_ENGINE__DEVICE: got {name!r}, but torch sees {torch.cuda.device_count()} GPUs here"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _check_offload(offload: str, device: torch.device) -> None:
    if offload == "none":
        return
    if device.type != "cuda":
        raise SettingsError(f"ZIMAGE_ENGINE__OFFLOAD: got {offload!r}, takes only 'none' without a GPU")
    if not importlib.util.find_spec("accelerate"):
        raise SettingsError(f"ZIMAGE_ENGINE__OFFLOAD: got {offload!r}, which needs pip install accelerate")
