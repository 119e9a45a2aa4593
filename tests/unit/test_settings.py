"""Settings: read once, checked at start, and clear about what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from zimage_stream.errors import SettingsError
from zimage_stream.settings import Settings, environment_of, load_settings


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("ZIMAGE_"):
            monkeypatch.delenv(name)


def test_the_environment_wins_over_the_file_and_arguments_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "zimage.toml"
    file.write_text('[kafka]\nbootstrap_servers = "file:1"\n[store]\nbucket = "file"\nendpoint = "file:2"\n')
    monkeypatch.setenv("ZIMAGE_STORE__BUCKET", "environment")
    settings = load_settings(file, {"store": {"endpoint": "argument:3"}})
    assert settings.kafka.bootstrap_servers == "file:1"
    assert settings.store.bucket == "environment"
    assert settings.store.endpoint == "argument:3"
    assert settings.topics.requests == "zimage.requests"


def test_the_file_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "zimage.toml"
    file.write_text("[worker]\nmax_attempts = 5\n")
    monkeypatch.setenv("ZIMAGE_CONFIG", str(file))
    assert load_settings().worker.max_attempts == 5
    with pytest.raises(SettingsError, match="there is no such file"):
        load_settings(tmp_path / "elsewhere.toml")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WORKER__MAX_ATTEMPTS", "none", "got 'none'; input should be a valid integer"),
        ("WORKER__MAX_ATTEMPTS", "0", "got '0'; input should be greater than or equal to 1"),
        ("WORKER__MAX_ATTEMPTS", "15", "got '15'; input should be less than or equal to 14"),
        ("WORKER__GUARANTEE", "maybe", "got 'maybe'; input should be 'exactly_once' or 'at_least_once'"),
        ("ENGINE__MAX_BATCH", "65", "got '65'; input should be less than or equal to 64"),
        ("STORE__KIND", "ftp", "got 'ftp'; input should be 'minio' or 'directory'"),
        ("TELEMETRY__PORT", "70000", "got '70000'; input should be less than or equal to 65535"),
        ("STORE__BUCKETT", "x", "there is no such setting"),
    ],
)
def test_a_wrong_value_names_the_variable_what_it_got_and_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(f"ZIMAGE_{name}", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"ZIMAGE_{name}: ")
    assert words in str(caught.value)


def test_every_problem_has_a_line() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(overrides={"worker": {"window": 0}, "store": {"kind": "ftp"}})
    assert len(str(caught.value).splitlines()) == 2


def test_secrets_are_not_shown_and_reach_a_child_process() -> None:
    settings = load_settings(overrides={"store": {"access_key": "key", "secret_key": "hush"}})
    assert "hush" not in repr(settings)
    assert environment_of(settings)["ZIMAGE_STORE__SECRET_KEY"] == "hush"


def test_a_child_process_gets_exactly_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        overrides={"kafka": {"extra": {"a.b": "1"}}, "scheduler": {"tenant_weights": {"gold": 3}}}
    )
    monkeypatch.setenv("ZIMAGE_REGISTRY__URL", "http://not.these")
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ZIMAGE_REGISTRY__URL")
    assert load_settings().model_dump() == settings.model_dump()


def test_they_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(pydantic.ValidationError):
        settings.kafka.bootstrap_servers = "elsewhere"


def test_nothing_is_read_at_import() -> None:
    code = "import os; os.environ['ZIMAGE_WORKER__WINDOW'] = 'wrong'; import zimage_stream.settings"
    subprocess.run([sys.executable, "-c", code], check=True)
