"""How many models may pass through the host's memory at once, and how its size is determined."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.host.loading import available_bytes, may_load, weights_bytes
from zimage_stream.settings import EngineSettings

GIB = 1 << 30
MEMINFO = "MemTotal:       32000000 kB\nMemAvailable:   16777216 kB\nSwapFree: 0 kB\n"


@given(st.integers(1, 64), st.integers(1, 10**12), st.integers(0, 10**13))
def test_workers_load_together_only_if_their_models_fit(loading: int, weights: int, available: int) -> None:
    if may_load(loading, weights, available):
        assert (loading + 1) * weights <= available


@given(st.none() | st.integers(0, 10**12), st.none() | st.integers(0, 10**13))
def test_one_worker_may_always_load(weights: int | None, available: int | None) -> None:
    assert may_load(0, weights, available)


def test_with_unknown_sizes_workers_load_one_at_a_time() -> None:
    assert not may_load(1, None, 10**12)
    assert not may_load(1, 24 * GIB, None)
    assert may_load(7, 0, None)


def test_the_size_of_the_weights_is_that_of_the_files_in_the_folder(tmp_path: Path) -> None:
    for name, size in (
        ("transformer/a.safetensors", 700),
        ("vae/b.bin", 30),
        ("tokenizer/vocab.json", 9_000),
    ):
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(bytes(size))
    assert weights_bytes(EngineSettings(model=str(tmp_path))) == 730
    assert weights_bytes(EngineSettings(kind="simulated")) == 0
    tiny = weights_bytes(EngineSettings(model="tiny"))
    assert tiny is not None
    assert 5 << 20 < tiny < 25 << 20


@pytest.mark.parametrize("model", ["zimage/not-downloaded-here", "neither a folder nor a hub id"])
def test_weights_that_are_not_downloaded_yet_have_no_size(model: str) -> None:
    assert weights_bytes(EngineSettings(model=model)) is None


def test_available_memory_is_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert available_bytes(tmp_path / "meminfo", tmp_path) == 16 * GIB
    assert available_bytes(tmp_path / "missing", tmp_path) is None


@pytest.mark.parametrize(("limit", "expected"), [("max", 16 * GIB), (str(8 * GIB), 7 * GIB)])
def test_a_containers_available_memory_is_what_its_limit_leaves(
    tmp_path: Path, limit: str, expected: int
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == expected
