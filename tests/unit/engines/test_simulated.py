"""The simulated engine: its timing, its images, and every fault it injects."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_stream.engines import ImageSpec
from zimage_stream.engines.simulated import SimulatedEngine, service_seconds
from zimage_stream.errors import (
    ContextLostError,
    EngineError,
    GenerationCancelledError,
    OutOfMemoryError,
    RequestError,
)
from zimage_stream.imaging import encode
from zimage_stream.simulated_faults import Fault


def spec(
    prompt: str = "a heron", width: int = 64, height: int = 64, steps: int = 8, seed: int = 1
) -> ImageSpec:
    return ImageSpec(prompt, width, height, steps, 0.0, seed)


def engine(faults: dict[str, str] | None = None, salt: str = "") -> tuple[SimulatedEngine, list[float]]:
    """An engine that only notes how long it would sleep."""
    slept: list[float] = []
    parsed = {piece: Fault.parse(text) for piece, text in (faults or {}).items()}
    return SimulatedEngine(0.32, parsed, salt, sleep=slept.append, clock=lambda: sum(slept)), slept


@pytest.mark.parametrize(
    ("count", "side", "steps", "seconds"),
    [
        (1, 1024, 8, 0.32),
        (4, 1024, 8, 4 * 0.32),
        (1, 512, 8, 0.08),
        (2, 512, 8, 2 * 0.08 / 1.82),
        (4, 512, 8, 4 * 0.08 / 2.77),
        (8, 512, 8, 8 * 0.08 / 3.14),
        (1, 1024, 4, 0.16),
        (1, 2048, 8, 1.28),
        (16, 512, 8, 16 * 0.08 / 3.14),
    ],
)
def test_time_scales_as_documented(count: int, side: int, steps: int, seconds: float) -> None:
    simulated, slept = engine()
    images = simulated.generate([spec(width=side, height=side, steps=steps, seed=i) for i in range(count)])
    assert sum(slept) == pytest.approx(seconds)
    assert [image.size for image in images] == [(side, side)] * count


@given(st.integers(1, 20), st.sampled_from([64, 256, 512, 768, 1024]), st.integers(1, 50))
def test_a_larger_batch_takes_longer_in_total_but_not_per_image(count: int, side: int, steps: int) -> None:
    specs = [spec(width=side, height=side, steps=steps)] * (count + 1)
    small, large = service_seconds(specs[:count], 0.32), service_seconds(specs, 0.32)
    assert small < large
    assert large / (count + 1) <= small / count * (1 + 1e-9)


def test_equal_specs_give_equal_images_and_different_ones_do_not() -> None:
    simulated, _ = engine()
    others = [
        spec(),
        spec(prompt="a heron!"),
        spec(seed=2),
        spec(steps=9),
        ImageSpec("a heron", 64, 64, 8, 1.0, 1),
        spec(prompt="一只苍鹭"),
        spec(prompt="两只苍鹭"),
    ]
    pictures = [simulated.generate([one])[0].tobytes() for one in others]
    assert len(set(pictures)) == len(others)
    assert [image.tobytes() for image in engine()[0].generate(others)] == pictures


def test_scenery_is_as_hard_to_encode_as_a_photograph_and_equal_for_equal_specs() -> None:
    simulated = SimulatedEngine(0.0, scenic=True)
    one, same, other = (simulated.generate([spec(prompt, 512)])[0] for prompt in ("a", "a", "b"))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    flat = SimulatedEngine(0.0).generate([spec("a", 512)])[0]
    # A photograph compresses to about half its size.
    assert len(encode(one, "png", None, {}).data) > 0.4 * len(one.tobytes())
    assert len(encode(flat, "png", None, {}).data) < 0.1 * len(flat.tobytes())


def test_a_salt_changes_the_pixels() -> None:
    plain, salted = (engine(salt=salt)[0].generate([spec()])[0] for salt in ("", "other card"))
    assert plain.tobytes() != salted.tobytes()
    assert plain.mode == salted.mode == "RGB"


@pytest.mark.parametrize(
    ("directive", "error"),
    [
        ("raise", EngineError),
        ("refuse", RequestError),
        ("oom:0", OutOfMemoryError),
        ("lost", ContextLostError),
    ],
)
def test_a_fault_is_raised_for_matching_prompts(directive: str, error: type[Exception]) -> None:
    simulated, _ = engine({"poison": directive})
    with pytest.raises(error) as caught:
        simulated.generate([spec("some poison here")])
    assert type(caught.value) is error
    assert len(simulated.generate([spec("some medicine")])) == 1


def test_a_prompt_alone_causes_no_fault() -> None:
    simulated, slept = engine()
    assert len(simulated.generate([spec("kill raise hang oom:0 refuse lost slow:3")])) == 1
    assert slept == pytest.approx([0.32 / 256])


def test_oom_applies_only_above_its_batch_size() -> None:
    simulated, _ = engine({"large": "oom:2"})
    assert len(simulated.generate([spec("large"), spec()])) == 2
    with pytest.raises(OutOfMemoryError):
        simulated.generate([spec("large"), spec(), spec()])


def test_a_refusal_names_the_request_only_if_it_runs_alone() -> None:
    simulated, _ = engine({"poison": "refuse"})
    with pytest.raises(EngineError):
        simulated.generate([spec(), spec("poison")])
    with pytest.raises(RequestError) as caught:
        simulated.generate([spec("poison")])
    assert caught.value.field == "prompt"


def test_slow_adds_its_seconds() -> None:
    simulated, slept = engine({"heavy": "slow:2.5"})
    simulated.generate([spec("heavy")])
    assert slept == pytest.approx([2.5, 0.32 / 256])


def test_hang_sleeps_beyond_any_patience() -> None:
    simulated, slept = engine({"stuck": "hang"})
    simulated.generate([spec("stuck")])
    assert slept[0] >= 3600


def test_corrupt_returns_half_an_image_for_matching_prompts() -> None:
    simulated, _ = engine({"poison": "corrupt"})
    images = simulated.generate([spec("poison"), spec()])
    assert [image.size for image in images] == [(64, 32), (64, 64)]


def test_leak_keeps_its_megabytes_allocated() -> None:
    simulated, _ = engine({"drip": "leak:64"})
    assert simulated.device_memory() == {}
    for prompt in ("drip", "no leak", "drip"):
        simulated.generate([spec(prompt)])
    assert simulated.device_memory() == {"allocated": 128 << 20, "reserved": 128 << 20}


def test_a_running_generation_can_be_cancelled() -> None:
    simulated, slept = engine()
    answers = iter([False, False, True])
    with pytest.raises(GenerationCancelledError):
        simulated.generate([spec(width=1024, height=1024)], lambda: next(answers))
    assert 0 < sum(slept) < 0.32


def test_steps_are_reported_at_equal_intervals_and_take_no_time() -> None:
    simulated, slept = engine()
    reports: list[tuple[int, int, float]] = []
    simulated.generate(
        [spec(width=1024, height=1024, steps=4)] * 2,
        stepped=lambda step, steps: reports.append((step, steps, sum(slept))),
    )
    assert [report[:2] for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [at for _, _, at in reports] == pytest.approx([0.08, 0.16, 0.24, 0.32])
    assert sum(slept) == pytest.approx(0.32)


def test_a_generation_that_reports_its_steps_is_cancelled_on_its_way() -> None:
    simulated, _ = engine()
    steps: list[int] = []
    with pytest.raises(GenerationCancelledError):
        simulated.generate(
            [spec(width=1024, height=1024)], lambda: len(steps) == 3, lambda step, _: steps.append(step)
        )
    assert steps == [1, 2, 3]


def test_kill_ends_the_process_at_once() -> None:
    program = (
        "from zimage_stream.engines import ImageSpec\n"
        "from zimage_stream.simulated_faults import Fault\n"
        "from zimage_stream.engines.simulated import SimulatedEngine\n"
        "engine = SimulatedEngine(0, {'poison': Fault.parse('kill')})\n"
        "engine.generate([ImageSpec('fine', 64, 64, 8, 0.0, 1)])\n"
        "print('alive', flush=True)\n"
        "engine.generate([ImageSpec('poison', 64, 64, 8, 0.0, 1)])\n"
        "print('still alive', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "alive\n")


@given(st.text(min_size=1, max_size=400), st.integers(0, 2**63 - 1))
def test_any_prompt_can_be_drawn(prompt: str, seed: int) -> None:
    simulated, _ = engine()
    assert simulated.generate([spec(prompt, seed=seed)])[0].size == (64, 64)
    assert simulated.count_tokens(prompt) == (len(prompt) + 3) // 4
