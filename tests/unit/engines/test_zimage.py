"""The real engine, on the packaged checkpoint and the CPU."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given
from hypothesis import settings as hyp_settings
from hypothesis import strategies as st
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

import zimage_stream.engines
from zimage_stream.engines import ImageSpec
from zimage_stream.engines.memory import UNUSED_CACHE_BYTES
from zimage_stream.engines.zimage import StepReports, ZImageEngine, to_images
from zimage_stream.errors import EngineError, GenerationCancelledError, OutOfMemoryError, SettingsError
from zimage_stream.settings import EngineSettings

CHECKPOINT = Path(zimage_stream.engines.__file__).parent / "tiny"
PROMPTS = (
    "a red circle on a white background",
    "一张图片：黑色背景上的一个黄色五角星",
    "draw a blue heart on a green background, and make it the most beautiful heart " * 3,
    "圆",
)
BEYOND_ANY_MEMORY = 16 * 2**21
"""Pixels per side: the noise alone takes 2**50 bytes, which no allocator provides."""


def specs(prompts: Sequence[str], steps: int = 4) -> list[ImageSpec]:
    return [ImageSpec(prompt, 64, 64, steps, 0.0, seed) for seed, prompt in enumerate(prompts)]


class Memory:
    """A device's memory with figures set by the test. Counts releases."""

    def __init__(self) -> None:
        self.unused = 0
        self.releases = 0

    def reserved(self) -> int:
        return 1_000 + self.unused

    def allocated(self) -> int:
        return 1_000

    def release(self) -> None:
        self.unused = 0
        self.releases += 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def settings(**values: object) -> EngineSettings:
    return EngineSettings.model_validate({"model": "tiny", "device": "cpu"} | values)


@pytest.fixture(scope="module")
def engine() -> Iterator[ZImageEngine]:
    engine = ZImageEngine(settings())
    engine.load()
    yield engine
    engine.close()


@pytest.fixture
def watched() -> Iterator[tuple[ZImageEngine, Memory, Clock]]:
    """An engine whose memory and clock the test controls; idle after 60 s."""
    memory, clock = Memory(), Clock()
    engine = ZImageEngine(settings(idle_release_s=60), memory, clock)
    engine.load()
    yield engine, memory, clock
    engine.close()


def furthest(one: Image.Image, other: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(one, other).getextrema())  # type: ignore[misc]


def test_a_mixed_batch_gives_the_same_images_as_each_spec_alone(engine: ZImageEngine) -> None:
    batch = specs(PROMPTS)
    together = engine.generate(batch)
    assert len(together) == len(batch)
    for spec, image in zip(batch, together, strict=True):
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert furthest(image, engine.generate([spec])[0]) <= 2


BATCHES = st.lists(
    st.tuples(st.text("红圆 red circle,.\U0001f3a8", min_size=1, max_size=80), st.integers(0, 2**63 - 1)),
    min_size=2,
    max_size=5,
)
SIZES = st.sampled_from([(64, 64), (96, 64), (64, 128)])


@hyp_settings(max_examples=4, deadline=None)
@given(BATCHES, SIZES)
def test_any_batch_gives_the_same_images_as_each_spec_alone(
    engine: ZImageEngine, asked: list[tuple[str, int]], size: tuple[int, int]
) -> None:
    assert_same_as_alone(engine, asked, size)


@pytest.mark.slow
@hyp_settings(max_examples=30, deadline=None)
@given(BATCHES, SIZES)
def test_many_batches_give_the_same_images_as_each_spec_alone(
    engine: ZImageEngine, asked: list[tuple[str, int]], size: tuple[int, int]
) -> None:
    assert_same_as_alone(engine, asked, size)


def assert_same_as_alone(engine: ZImageEngine, asked: list[tuple[str, int]], size: tuple[int, int]) -> None:
    batch = [ImageSpec(prompt, *size, 2, 0.0, seed) for prompt, seed in asked]
    for spec, image in zip(batch, engine.generate(batch), strict=True):
        assert image.size == size
        assert furthest(image, engine.generate([spec])[0]) <= 2


def test_the_same_specs_give_the_same_bytes_again(engine: ZImageEngine) -> None:
    first, second = (b"".join(i.tobytes() for i in engine.generate(specs(PROMPTS[:2]))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_equal_those_from_diffusers(dtype: torch.dtype) -> None:
    decoded = (torch.rand((2, 3, 40, 24), generator=torch.Generator().manual_seed(1)) * 2.4 - 1.2).to(dtype)
    processor = VaeImageProcessor()
    ours = to_images(processor.postprocess(decoded, output_type="pt"))
    theirs = processor.postprocess(decoded, output_type="pil")
    assert [(image.mode, image.size) for image in ours] == [("RGB", (24, 40))] * 2
    assert [image.tobytes() for image in ours] == [image.tobytes() for image in theirs]


def test_seed_prompt_and_steps_each_matter(engine: ZImageEngine) -> None:
    base = ImageSpec(PROMPTS[0], 64, 64, 4, 0.0, 7)
    others = [
        ImageSpec(PROMPTS[0], 64, 64, 4, 0.0, 2**63 - 1),
        ImageSpec(PROMPTS[1], 64, 64, 4, 0.0, 7),
        ImageSpec(PROMPTS[0], 64, 64, 3, 0.0, 7),
    ]
    pictures = {engine.generate([spec])[0].tobytes() for spec in [base, *others]}
    assert len(pictures) == 4


def test_sizes_and_proportions_are_as_requested(engine: ZImageEngine) -> None:
    assert engine.generate([ImageSpec(PROMPTS[0], 96, 64, 1, 0.0, 1)])[0].size == (96, 64)


def test_the_engine_works_after_the_pipeline_failed(engine: ZImageEngine) -> None:
    with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
        engine.generate([ImageSpec(PROMPTS[0], 64, 64, 0, 0.0, 1)])
    assert type(caught.value) is EngineError
    assert len(engine.generate(specs(PROMPTS[:1]))) == 1


@pytest.mark.parametrize("step", [1, 3, 8])
def test_a_generation_is_cancelled_between_steps_and_the_next_one_is_correct(
    engine: ZImageEngine, step: int
) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked == step

    before = engine.generate(specs(PROMPTS[:1]))[0]
    with pytest.raises(GenerationCancelledError):
        engine.generate(specs(PROMPTS[:2], steps=8), cancelled)
    assert asked == step
    assert engine.generate(specs(PROMPTS[:1]))[0].tobytes() == before.tobytes()


def test_steps_are_reported_and_change_no_picture(engine: ZImageEngine) -> None:
    reports: list[tuple[int, int]] = []
    asked = specs(PROMPTS[:2], steps=5)
    before = engine.generate(asked)
    images = engine.generate(asked, stepped=lambda step, steps: reports.append((step, steps)))
    assert reports == [(step, 5) for step in range(1, 6)]
    assert [image.tobytes() for image in images] == [image.tobytes() for image in before]


def test_on_a_gpu_a_step_is_reported_once_the_device_has_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        """Notes what it is asked to do."""

        made = 0

        def __init__(self) -> None:
            Event.made += 1
            self.step = Event.made

        def record(self, _: object) -> None:
            said.append(f"step {self.step} queued")

        def synchronize(self) -> None:
            said.append(f"step {self.step} done")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    reports = StepReports(3, lambda step, steps: said.append(f"{step}/{steps}"), torch.device("cuda"))
    for _ in range(2):
        reports.queued()
    reports.finished()
    assert said == ["step 1 queued", "step 2 queued", "step 1 done", "1/3", "2/3", "3/3"]


def test_nan_is_an_error_and_not_a_black_image(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (weights,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in sorted(tensors) if "final_layer" in name and name.endswith("weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(EngineError, match=r"images \[0\] of a batch contain NaN or infinity"):
        ZImageEngine(settings(model=str(folder))).load()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_or_infinity_from_the_decoder_is_an_error_that_names_the_images(
    watched: tuple[ZImageEngine, Memory, Clock], value: float
) -> None:
    engine, _, _ = watched

    def break_second(_: torch.nn.Module, __: object, decoded: torch.Tensor) -> torch.Tensor:
        decoded[-1, 0, 0, 0] = value
        return decoded

    asked = specs(PROMPTS[:2], steps=1)
    hook = engine._pipeline.vae.decoder.register_forward_hook(break_second, prepend=True)
    with pytest.raises(EngineError, match=r"images \[1\] of a batch contain NaN or infinity"):
        engine.generate(asked)
    hook.remove()
    assert len(engine.generate(asked)) == 2


def test_an_image_that_does_not_fit_is_out_of_memory_and_frees_the_cache(
    watched: tuple[ZImageEngine, Memory, Clock],
) -> None:
    engine, memory, _ = watched
    with pytest.raises(OutOfMemoryError, match="allocate") as caught:
        engine.generate([ImageSpec(PROMPTS[0], BEYOND_ANY_MEMORY, BEYOND_ANY_MEMORY, 1, 0.0, 1)])
    assert memory.releases == 1
    # The error must not keep the tensors alive that did not fit.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert len(engine.generate(specs(PROMPTS[:1]))) == 1


def test_the_cache_is_released_when_too_much_of_it_is_unused(
    watched: tuple[ZImageEngine, Memory, Clock],
) -> None:
    engine, memory, _ = watched
    memory.unused = UNUSED_CACHE_BYTES
    engine.generate(specs(PROMPTS[:1], steps=1))
    assert memory.releases == 0
    memory.unused += 1
    engine.generate(specs(PROMPTS[:1], steps=1))
    assert memory.releases == 1


def test_idle_weights_leave_the_device_once_and_return_on_demand(
    watched: tuple[ZImageEngine, Memory, Clock], caplog: pytest.LogCaptureFixture
) -> None:
    engine, memory, clock = watched
    caplog.set_level(logging.INFO)
    before = engine.generate(specs(PROMPTS[:1]))[0]
    clock.now = 59.0
    engine.idle()
    assert memory.releases == 0
    clock.now = 60.0
    memory.unused = 1_500_000_000
    engine.idle()
    engine.idle()
    assert memory.releases == 1
    (said,) = [record.getMessage() for record in caplog.records if "idle" in record.getMessage()]
    assert said == "idle for 60 s: moved the weights off the device, 1.5 GB released"
    assert engine.generate(specs(PROMPTS[:1]))[0].tobytes() == before.tobytes()
    clock.now = 119.0
    engine.idle()
    assert memory.releases == 1
    clock.now = 120.0
    engine.idle()
    assert memory.releases == 2


def test_tokens_are_those_of_the_chat_template(engine: ZImageEngine) -> None:
    empty = engine.count_tokens("")
    assert empty is not None
    assert empty > 0  # the template's own
    for prompt in PROMPTS:
        counted = engine.count_tokens(prompt)
        assert counted is not None
        assert counted > empty
    # Characters outside the vocabulary take a token for each byte: four here, three below.
    assert engine.count_tokens("🎨" * 100) == empty + 400
    assert engine.count_tokens("龘" * 100) == empty + 300


def test_tokens_can_be_counted_during_generation(engine: ZImageEngine) -> None:
    expected = [engine.count_tokens(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(2) as pool:
        counting = [
            pool.submit(lambda: [engine.count_tokens(prompt) for prompt in PROMPTS]) for _ in range(50)
        ]
        images = engine.generate(specs(PROMPTS[:2]))
        assert all(counted.result() == expected for counted in counting)
    assert len(images) == 2


def test_before_load_there_is_no_tokenizer() -> None:
    assert ZImageEngine(settings()).count_tokens("a heron") is None


def test_the_model_and_its_revision_are_known(engine: ZImageEngine) -> None:
    assert (engine.model, engine.model_revision) == ("tiny-zimage", "")
    named = ZImageEngine(EngineSettings(model="Tongyi-MAI/Z-Image-Turbo", revision="abc", device="cpu"))
    assert (named.model, named.model_revision) == ("Tongyi-MAI/Z-Image-Turbo", "abc")


def test_a_folder_can_be_used_as_a_model(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    engine = ZImageEngine(settings(model=str(tmp_path / "model")))
    engine.load()
    assert engine.model == str(tmp_path / "model")
    engine.close()


def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SettingsError, match=r"ZIMAGE_ENGINE__MODEL: got .* cannot be loaded"):
        ZImageEngine(settings(model=str(folder))).load()


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ZIMAGE_ENGINE__MODEL: got .* cannot be loaded"):
        ZImageEngine(settings(model=str(tmp_path))).load()


@pytest.mark.parametrize("backend", ["flash", "no-such-thing"])
def test_an_attention_backend_that_is_not_installed_is_a_settings_error(backend: str) -> None:
    with pytest.raises(SettingsError, match=f"ZIMAGE_ENGINE__ATTENTION: got '{backend}'"):
        ZImageEngine(settings(attention=backend)).load()


def test_torchs_own_attention_gives_the_same_image(engine: ZImageEngine) -> None:
    native = ZImageEngine(settings(attention="native"))
    native.load()
    pictures = [e.generate(specs(PROMPTS[:1]))[0] for e in (engine, native)]
    native.close()
    assert furthest(*pictures) <= 2


def test_bfloat16_is_used_on_request(engine: ZImageEngine) -> None:
    half = ZImageEngine(settings(dtype="bfloat16"))
    half.load()
    exact, rounded = (e.generate(specs(PROMPTS[:1], steps=8))[0] for e in (engine, half))
    half.close()
    assert exact.tobytes() != rounded.tobytes()


def test_loading_logs_one_line_and_the_libraries_log_nothing(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    engine = ZImageEngine(settings())
    engine.load()
    engine.generate(specs(PROMPTS[:1]))
    engine.close()
    assert [record.name for record in caplog.records] == ["zimage_stream.engines.zimage"]
    assert capfd.readouterr() == ("", "")
