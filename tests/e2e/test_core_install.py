"""The wheel in an empty environment with only a producer's dependencies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.services import KafkaAddress
from zimage_stream.settings import TopicSettings

ROOT = Path(__file__).parents[2]
DEADLINE_S = 240
LARGEST_WHEEL = 25_000_000
"""Largest size of the wheel in bytes, with the packaged checkpoint in it."""


def run(*words: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    options = {"cwd": cwd, "env": env, "timeout": DEADLINE_S, "encoding": "utf-8"}
    done = subprocess.run(words, check=False, capture_output=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment with the wheel and its core dependencies."""
    folder = tmp_path_factory.mktemp("core") / "venv"
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--quiet", "--python", sys.executable, str(folder), cwd=ROOT)
    # The lock pins everything; as constraints, it adds nothing to what the wheel requires itself.
    install = (*uv, "pip", "install", "--quiet", "--python", str(folder), "-c", "requirements.lock")
    run(*install, str(wheel), cwd=ROOT)
    return folder / "bin"


def clean_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ZIMAGE_", "PYTHON"))}
    return {**kept, "PYTHONUTF8": "1", "PYTHONWARNINGS": "error", **more}


def test_the_wheel_holds_all_packages_and_the_schemas(wheel: Path) -> None:
    assert wheel.stat().st_size < LARGEST_WHEEL
    names = zipfile.ZipFile(wheel).namelist()
    published = [path.name for path in (ROOT / "schemas").glob("*.avsc")]
    assert published
    for schema in published:
        assert f"zimage_stream/schemas/{schema}" in names
    for module in (
        "zimage_stream/py.typed",
        "zimage_producers/produce/command.py",
        "zimage_consumers/results/command.py",
    ):
        assert module in names
    assert not [name for name in names if name.startswith(("tests/", "producers/", "consumers/"))]


def test_a_producer_needs_no_torch(installed: Path, tmp_path: Path) -> None:
    code = """
import importlib.util as find, json
import zimage_stream
from zimage_stream import *
from zimage_stream.events.codec import Codec
codec, request = Codec(), PromptRequest(prompt="a heron")
again = codec.decode_request(codec.encode_request(request, "zimage.requests"))
heavy = [name for name in ("torch", "diffusers", "transformers") if find.find_spec(name)]
print(json.dumps([zimage_stream.__version__, zimage_stream.__file__, again == request, heavy]))
"""
    out = run(str(installed / "python"), "-c", code, cwd=tmp_path, env=clean_environment())
    found_version, place, same, heavy = json.loads(out)
    assert found_version == version("zimage-stream")
    assert Path(place).is_relative_to(installed.parent)
    assert same
    assert heavy == []


@pytest.mark.parametrize("word", ["--version", "--help"])
def test_the_command_is_installed(installed: Path, tmp_path: Path, word: str) -> None:
    assert "zimage" in run(str(installed / "zimage"), word, cwd=tmp_path, env=clean_environment())


def test_it_produces(installed: Path, tmp_path: Path, kafka: KafkaAddress, topics: TopicSettings) -> None:
    env = clean_environment(
        ZIMAGE_KAFKA__BOOTSTRAP_SERVERS=kafka.bootstrap_servers,
        ZIMAGE_TOPICS__REQUESTS=topics.requests,
        ZIMAGE_TOPICS__RESULTS=topics.results,
    )
    words = ("produce", "雾中的灯塔", "--request-id", "fog")
    assert run(str(installed / "zimage"), *words, cwd=tmp_path, env=env) == "fog\n"
