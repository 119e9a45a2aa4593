"""Which engine the settings create, and what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from zimage_stream.engines import create_engine
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.errors import SettingsError
from zimage_stream.settings import EngineSettings, load_settings


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=120
    )


def test_the_simulated_engine_and_imaging_need_only_pillow() -> None:
    done = python(
        "import sys\n"
        "from zimage_stream.engines import ImageSpec, create_engine\n"
        "from zimage_stream.imaging import contact_sheet, encode, read_text\n"
        "from zimage_stream.settings import EngineSettings\n"
        "from zimage_stream.engines.tiny.captions import caption\n"
        "engine = create_engine(EngineSettings(kind='simulated', simulated_ms=0))\n"
        "images = engine.generate([ImageSpec('x', 64, 64, 8, 0.0, 1)])\n"
        "assert read_text(encode(contact_sheet(images), 'webp', None, {'a': 'b'}).data) == {'a': 'b'}\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)))\n"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("missing", ["torch", "diffusers"])
def test_without_the_worker_extra_the_error_says_what_to_install(missing: str) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from zimage_stream.engines import create_engine\n"
        "from zimage_stream.errors import SettingsError\n"
        "from zimage_stream.settings import EngineSettings\n"
        "try:\n"
        "    create_engine(EngineSettings(model='tiny'))\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    assert "ZIMAGE_ENGINE__KIND" in done.stdout
    assert missing in done.stdout
    assert "pip install 'zimage-stream[worker]'" in done.stdout


def test_the_simulated_engine_is_created_from_the_settings() -> None:
    settings = EngineSettings(kind="simulated", simulated_faults={"bad": "raise"}, simulated_salt="other")
    assert isinstance(create_engine(settings), SimulatedEngine)


@pytest.mark.parametrize(
    "directive", ["explode", "slow", "slow:", "slow:-1", "kill:1", "", "RAISE", "oom:two"]
)
def test_an_invalid_directive_is_reported_with_the_valid_ones(directive: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"engine": {"kind": "simulated", "simulated_faults": {"x": directive}}})
    assert str(caught.value) == (
        f"ZIMAGE_ENGINE__SIMULATED_FAULTS: got {directive!r}, "
        "takes one of slow:SECONDS, hang, oom:BATCH, raise, refuse, kill, lost, corrupt, leak:MEGABYTES"
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("device", "tpu"),
        ("device", "gpu0"),
        ("device", "meta"),
        ("device", "cuda:99"),
        ("offload", "model"),
        ("offload", "sequential"),
        ("offload", "text_encoder"),
    ],
)
def test_what_the_device_does_not_support_is_a_settings_error(setting: str, value: str) -> None:
    settings = EngineSettings.model_validate({"model": "tiny", "device": "cpu", setting: value})
    with pytest.raises(SettingsError, match=f"ZIMAGE_ENGINE__{setting.upper()}: got '{value}'"):
        create_engine(settings)
