"""Previews: what they show, when they are made, and how large they are."""

from __future__ import annotations

import io
import itertools
import logging
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from zimage_stream.engines import ImageSpec, zimage
from zimage_stream.engines.base import Encode, Engine, Previews, makes_previews
from zimage_stream.engines.latents import ColourMap, LatentPreviews
from zimage_stream.engines.previews import encode_preview, preview_steps
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.engines.tiny.captions import COMBINATIONS, SHAPES, caption
from zimage_stream.engines.zimage import ZImageEngine
from zimage_stream.events.progress import MAX_PREVIEW_BYTES, MAX_PREVIEW_SIDE
from zimage_stream.settings import EngineSettings

STEPS = 8
GRID = 8
"""Pixels of an image that a latent's position stands for, in each direction."""
COLOURS_AGREE = 64
"""Greatest mean difference of colours, of 255. No affine map follows this small decoder exactly: over 48
images the difference is 28 on average and 48 at worst (measured). Most wrong colours of the palette are
further away, and a second comparison tells the two colours of an image apart."""


class Shown:
    """Collects previews, and what is told of steps, in order."""

    def __init__(self, *counts: int) -> None:
        self.previews = Previews(counts, self._show)
        self.order: list[str] = []
        self.made: dict[tuple[int, int], Encode] = {}

    def _show(self, index: int, step: int, encode: Encode) -> None:
        self.order.append(f"preview {index} after {step}")
        self.made[index, step] = encode

    def stepped(self, step: int, steps: int) -> None:
        self.order.append(f"step {step} of {steps}")


def pixels_of(jpeg: bytes) -> NDArray[np.float64]:
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return np.asarray(image, np.float64)


@pytest.fixture(scope="module")
def engine() -> Iterator[ZImageEngine]:
    engine = ZImageEngine(EngineSettings.model_validate({"model": "tiny", "device": "cpu"}))
    engine.load()
    yield engine
    engine.close()


def specs(count: int = 1, steps: int = 4) -> list[ImageSpec]:
    return [ImageSpec(f"a red circle, number {n}", 64, 64, steps, 0.0, n) for n in range(count)]


class TestWhen:
    @pytest.mark.parametrize(
        ("steps", "count", "after"),
        [
            (8, 0, ()),
            (8, 1, (4,)),
            (8, 2, (3, 5)),
            (8, 3, (2, 4, 6)),
            (4, 3, (1, 2, 3)),
            (50, 3, (13, 25, 38)),
            (2, 3, (1,)),
            (1, 3, ()),
        ],
    )
    def test_previews_are_made_after_these_steps(
        self, steps: int, count: int, after: tuple[int, ...]
    ) -> None:
        assert preview_steps(steps, count) == after

    @given(st.integers(1, 50), st.integers(0, 3))
    def test_they_are_spread_evenly_and_none_is_made_of_the_finished_image(
        self, steps: int, count: int
    ) -> None:
        after = preview_steps(steps, count)
        assert all(1 <= step < steps for step in after)
        if steps > count:
            gaps = [high - low for low, high in itertools.pairwise((0, *after, steps))]
            assert len(after) == count
            assert max(gaps) - min(gaps) <= 1


class TestSize:
    @pytest.mark.parametrize(
        ("size", "shown"),
        [
            ((8, 8), (8, 8)),
            ((256, 256), (256, 256)),
            ((2048, 2048), (256, 256)),
            ((2048, 64), (256, 8)),
            ((64, 2048), (8, 256)),
            ((1024, 768), (256, 192)),
        ],
    )
    def test_a_preview_of_a_calm_picture_is_as_large_as_it_may_be(
        self, size: tuple[int, int], shown: tuple[int, int]
    ) -> None:
        jpeg = encode_preview(Image.new("RGB", size, (200, 30, 30)))
        image = Image.open(io.BytesIO(jpeg))
        assert image.size == shown
        assert len(jpeg) <= MAX_PREVIEW_BYTES

    @pytest.mark.parametrize("size", [(256, 256), (2048, 2048), (2048, 16), (16, 2048), (255, 256)])
    def test_noise_fits_too(self, size: tuple[int, int]) -> None:
        # Black and white pixels at random: nothing takes more bytes.
        bits = np.random.default_rng(1).integers(0, 2, (size[1], size[0], 3), np.uint8)
        jpeg = encode_preview(Image.fromarray(bits * 255))
        assert len(jpeg) <= MAX_PREVIEW_BYTES
        assert max(Image.open(io.BytesIO(jpeg)).size) <= MAX_PREVIEW_SIDE

    @pytest.mark.parametrize(
        ("width", "height"), [(2048, 2048), (2048, 64), (64, 2048), (2048, 1024), (64, 64)]
    )
    @pytest.mark.parametrize("scale", [0.0, 1.0, 60_000.0, float("nan")])
    def test_any_latents_of_any_size_give_a_preview_that_fits(
        self, width: int, height: int, scale: float
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        shape = (1, 16, height // GRID, width // GRID)
        sample, velocity = (torch.randn(shape, generator=generator) * scale for _ in range(2))
        colours = ColourMap(np.full((16, 3), 40, np.float32), np.full(3, 128, np.float32))
        shown = Shown(1)
        made = LatentPreviews(colours, 2, shown.previews)
        made.capture(sample, velocity, torch.tensor(0.5))
        made.show(1)
        jpeg = shown.made[0, 1]()
        assert len(jpeg) <= MAX_PREVIEW_BYTES
        with Image.open(io.BytesIO(jpeg)) as image:
            assert max(image.size) <= MAX_PREVIEW_SIDE
            # Half the size or less is possible where many pixels differ.
            assert abs(image.width / image.height / (width / height) - 1) < 0.3


def in_positions(image: Image.Image) -> NDArray[np.float64]:
    """Mean colours of what each position of the latents stands for: an array of shape (rows, columns, 3)."""
    rows, columns = image.height // GRID, image.width // GRID
    pixels = np.asarray(image, np.float64)
    means: NDArray[np.float64] = pixels.reshape(rows, GRID, columns, GRID, 3).mean((1, 3))
    return means


def areas_of(image: Image.Image) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The positions that the shape covers, and those that show nothing of it."""
    pixels = np.asarray(image, np.float64)
    background = np.median(pixels[:4].reshape(-1, 3), axis=0)
    distance = np.linalg.norm(pixels - background, axis=2)
    front = np.median(pixels[distance > 0.6 * np.percentile(distance, 99)], axis=0)
    covered = distance > 0.5 * np.linalg.norm(front - background)
    share = covered.reshape(pixels.shape[0] // GRID, GRID, -1, GRID).mean((1, 3))
    return share > 0.75, share < 0.02


def two_of(shape: str) -> list[tuple[str, str, str]]:
    return random.Random(shape).sample([each for each in COMBINATIONS if each[0] == shape], 2)


class TestColours:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_preview_of_a_shape_has_its_colours_and_those_of_the_background(
        self, engine: ZImageEngine, shape: str
    ) -> None:
        asked = [
            ImageSpec(caption(*each, "en", 0), 64, 64, STEPS, 0.0, seed)
            for seed, each in enumerate(two_of(shape))
        ]
        shown = Shown(3, 3)
        images = engine.generate(asked, previews=shown.previews)
        assert sorted(shown.made) == [(index, step) for index in (0, 1) for step in (2, 4, 6)]
        for (index, _), encode in shown.made.items():
            preview, final = pixels_of(encode()), in_positions(images[index])
            inside, outside = areas_of(images[index])
            seen = [preview[area].mean(0) for area in (inside, outside)]
            true = [final[area].mean(0) for area in (inside, outside)]
            for own, other in ((0, 1), (1, 0)):
                distance = np.abs(seen[own] - true[own]).mean()
                assert distance <= COLOURS_AGREE
                assert distance < np.abs(seen[own] - true[other]).mean()

    def test_a_pixel_is_where_its_latent_is(self) -> None:
        latents = np.zeros((16, 4, 6), np.float16)
        latents[7, 1, 4] = 1.0
        weights = np.zeros((16, 3), np.float32)
        weights[7] = 100, 200, 300
        picture = ColourMap(weights, np.array([10, 0, 0], np.float32)).picture(latents)
        assert (picture.mode, picture.size) == ("RGB", (6, 4))
        expected = np.zeros((4, 6, 3), np.uint8)
        expected[:, :, 0] = 10
        expected[1, 4] = 110, 200, 255
        assert np.array_equal(np.asarray(picture), expected)

    def test_a_preview_has_the_shape_of_its_image(self, engine: ZImageEngine) -> None:
        shown = Shown(1)
        (image,) = engine.generate(
            [ImageSpec("a black circle on a white background", 96, 64, STEPS, 0.0, 3)],
            previews=shown.previews,
        )
        preview = pixels_of(shown.made[0, 4]())
        assert preview.shape == (8, 12, 3)
        # Where the picture is dark, so is the preview, pixel by pixel.
        agreement = np.corrcoef(preview.mean(2).ravel(), in_positions(image).mean(2).ravel())[0, 1]
        assert agreement > 0.8

    @pytest.mark.parametrize("size", [(64, 64), (1024, 768), (64, 2048)])
    def test_the_simulated_engine_shows_the_colours_of_its_image(self, size: tuple[int, int]) -> None:
        shown = Shown(1)
        (image,) = SimulatedEngine(0.0).generate(
            [ImageSpec("a heron", *size, STEPS, 0.0, 1)], previews=shown.previews
        )
        preview = pixels_of(shown.made[0, 4]())
        small = np.asarray(image.resize((preview.shape[1], preview.shape[0]), Image.Resampling.BOX), float)
        # JPEG blurs the lettering and the edges of eight fields of colour.
        assert np.abs(preview - small).mean() < 12


@pytest.fixture(params=["tiny", "simulated"])
def either(request: pytest.FixtureRequest) -> Any:
    """Each engine that makes previews."""
    if request.param == "simulated":
        return SimulatedEngine(0.0)
    return request.getfixturevalue("engine")


class TestAGeneration:
    def test_shows_what_each_spec_asks_for_before_it_reports_the_step(self, either: Any) -> None:
        shown = Shown(3, 0, 1)
        either.generate(specs(3), stepped=shown.stepped, previews=shown.previews)
        assert shown.order == [
            "preview 0 after 1",
            "step 1 of 4",
            "preview 0 after 2",
            "preview 2 after 2",
            "step 2 of 4",
            "preview 0 after 3",
            "step 3 of 4",
            "step 4 of 4",
        ]

    def test_shows_them_to_somebody_who_does_not_want_the_steps(self, either: Any) -> None:
        shown = Shown(2)
        either.generate(specs(), previews=shown.previews)
        assert shown.order == ["preview 0 after 1", "preview 0 after 3"]

    def test_makes_the_same_images_with_them(self, either: Any) -> None:
        plain = either.generate(specs(2))
        seen = either.generate(specs(2), previews=Shown(3, 1).previews)
        assert [each.tobytes() for each in seen] == [each.tobytes() for each in plain]

    def test_shows_nothing_of_the_next_one(self, engine: ZImageEngine) -> None:
        shown = Shown(3)
        engine.generate(specs(), previews=shown.previews)
        engine.generate(specs(), stepped=shown.stepped)
        assert [each for each in shown.order if each.startswith("preview")] == [
            f"preview 0 after {step}" for step in (1, 2, 3)
        ]

    def test_costs_nothing_once_nobody_wants_previews(
        self, engine: ZImageEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        captured: list[object] = []
        monkeypatch.setattr(LatentPreviews, "capture", lambda _, *made: captured.append(made))
        engine.generate(specs(), previews=Shown(1).previews)
        assert len(captured) == 4
        engine.generate(specs())
        assert len(captured) == 4

    def test_leaves_out_a_preview_that_fails(
        self, engine: ZImageEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("no room on the device")

        before = engine.generate(specs())
        monkeypatch.setattr(LatentPreviews, "capture", fail)
        shown = Shown(3)
        caplog.set_level(logging.DEBUG, "zimage_stream")
        images = engine.generate(specs(), stepped=shown.stepped, previews=shown.previews)
        assert images[0].tobytes() == before[0].tobytes()
        assert shown.order == [f"step {step} of 4" for step in range(1, 5)]
        said = [(record.levelno, record.getMessage()) for record in caplog.records]
        assert said == [(logging.DEBUG, "a preview is left out: no room on the device")] * 4

    def test_does_no_more_on_its_thread_than_to_copy(
        self, engine: ZImageEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worked: list[threading.Thread] = []

        def picture(self: ColourMap, latents: NDArray[Any]) -> Image.Image:
            worked.append(threading.current_thread())
            return Image.new("RGB", (8, 8))

        monkeypatch.setattr(ColourMap, "picture", picture)
        shown = Shown(3)
        engine.generate(specs(), previews=shown.previews)
        assert worked == []
        other = threading.Thread(target=lambda: [encode() for encode in shown.made.values()])
        other.start()
        other.join(120)
        assert worked == [other] * 3


def test_a_model_whose_colours_cannot_be_fitted_makes_images_without_previews(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("it has no encoder")

    monkeypatch.setattr(zimage, "fit_colours", fail)
    engine = ZImageEngine(EngineSettings.model_validate({"model": "tiny", "device": "cpu"}))
    engine.load()
    shown = Shown(3)
    assert len(engine.generate(specs(), stepped=shown.stepped, previews=shown.previews)) == 1
    engine.close()
    assert shown.order == [f"step {step} of 4" for step in range(1, 5)]
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == ["this model makes no previews: it has no encoder"]


class Stepping:
    def generate(
        self, specs: Sequence[ImageSpec], cancelled: object = None, stepped: object = None
    ) -> list[Image.Image]:
        return []


@pytest.mark.parametrize(("engine", "makes"), [(SimulatedEngine(), True), (Stepping(), False)])
def test_an_engine_makes_previews_if_it_takes_the_argument(engine: Engine, makes: bool) -> None:
    assert makes_previews(engine) is makes
