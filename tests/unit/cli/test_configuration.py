"""``zimage config show``: every setting, its value and its source."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from zimage_stream.cli.main import main


@pytest.fixture
def show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> dict[str, dict[str, object]]:
    """The record shown for each setting, by name."""
    for name in [name for name in os.environ if name.startswith("ZIMAGE_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "z.toml"
    config.write_text(
        '[kafka]\nsasl_password = "hunter2"\nbootstrap_servers = "file:9092"\n'
        '[kafka.extra]\n"ssl.key.pem" = "hunter2"\n"fetch.min.bytes" = "1"\n[worker]\nwindow = 5\n'
        '[store]\npublic_base_url = "https://me:hunter2@cdn/pictures"\n',
        encoding="utf-8-sig",
    )
    monkeypatch.setenv("ZIMAGE_CONFIG", str(config))
    monkeypatch.setenv("ZIMAGE_KAFKA__BOOTSTRAP_SERVERS", "variable:9092")
    monkeypatch.setenv("ZIMAGE_SCHEDULER__TENANT_WEIGHTS__ACME", "2")
    monkeypatch.setenv("ZIMAGE_REGISTRY__URL", "http://me:hunter2@registry:8081")
    monkeypatch.setenv("ZIMAGE_TOPICS", '{"results": "other"}')
    monkeypatch.setattr(sys, "argv", ["zimage", "config", "show", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    said = capsys.readouterr().out
    assert "hunter2" not in said
    return {each["name"]: each | {"file": str(config)} for each in map(json.loads, said.splitlines())}


def test_the_source_that_takes_precedence_is_named(show: dict[str, dict[str, object]]) -> None:
    def of(name: str) -> tuple[object, object]:
        return show[name]["value"], show[name]["source"]

    config = show["worker.window"]["file"]
    assert of("kafka.bootstrap_servers") == ("variable:9092", "ZIMAGE_KAFKA__BOOTSTRAP_SERVERS")
    assert of("worker.window") == (5, config)
    assert of("topics.results") == ("other", "ZIMAGE_TOPICS")
    assert of("topics.requests") == ("zimage.requests", "default")
    assert of("scheduler.tenant_weights")[1] == "ZIMAGE_SCHEDULER__TENANT_WEIGHTS__ACME"
    assert of("engine.max_batch") == (8, "default")


def test_secrets_are_masked(show: dict[str, dict[str, object]]) -> None:
    assert show["kafka.sasl_password"]["value"] == "********"
    assert show["kafka.extra"]["value"] == {"ssl.key.pem": "********", "fetch.min.bytes": "1"}
    assert show["store.secret_key"]["value"] is None


def test_a_url_is_shown_without_its_password_and_with_its_source(show: dict[str, dict[str, object]]) -> None:
    assert show["store.public_base_url"]["value"] == "https://********@cdn/pictures"
    assert show["registry.url"]["value"] == "http://registry:8081"
    assert show["registry.username"]["value"] == "me"
    assert show["registry.password"]["value"] == "********"
    assert {show[f"registry.{name}"]["source"] for name in ("url", "username", "password")} == {
        "ZIMAGE_REGISTRY__URL"
    }
