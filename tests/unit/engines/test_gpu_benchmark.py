"""The parts of the GPU benchmark that run without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import NEEDS, floor_flops, main, random_modules


def test_its_weights_have_the_published_sizes() -> None:
    with torch.device("meta"):
        modules = random_modules()
    sizes = {name: sum(p.numel() for p in module.parameters()) / 1e9 for name, module in modules.items()}
    published = {"transformer": 6.155, "text_encoder": 4.022, "vae": 0.084}
    assert sizes == pytest.approx(published, abs=0.001)


def test_the_lower_bound_grows_faster_than_the_number_of_pixels() -> None:
    assert floor_flops(1024, 2) == 2 * floor_flops(1024, 1)
    assert floor_flops(1024, 1) > 4 * floor_flops(512, 1)


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the program in this process, which has loaded torch already. Returns its exit code and output."""

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        code = main()
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_states_its_requirements(run: Callable[..., tuple[int, str]]) -> None:
    assert run() == (1, f"{NEEDS}\n")


def test_the_program_runs_on_a_cpu_with_the_tiny_checkpoint(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    figures = tmp_path / "gpu.json"
    words = ("--model", "tiny", "--device", "cpu", "--sizes", "64", "--batches", "1", "2", "--seconds", "0.2")
    code, said = run(*words, "--json", str(figures))
    assert code == 0
    assert [line.split()[:2] for line in said.splitlines()[2:]] == [["64", "1"], ["64", "2"]]
    assert [each["batch"] for each in json.loads(figures.read_text())["figures"]] == [1, 2]
