"""Hostile text in topics, files and settings never reaches the terminal unescaped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.hostile import HOSTILE, assert_harmless
from tests.integration.answers import ResultWriter, failed, succeeded
from zimage_stream import Failure, PromptRequest, Settings, Source
from zimage_stream.cli.main import main
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import dead_letter_headers
from zimage_stream.kafka.clients import producer_config
from zimage_stream.settings import environment_of
from zimage_stream.stores import ImageStore

Zimage = Callable[..., tuple[str, str]]
# An id is an Avro string and a record key, so it may contain anything; a header name cannot contain a NUL.
ID = HOSTILE
REQUEST = PromptRequest(prompt=HOSTILE, request_id=ID, tenant=HOSTILE, attributes={HOSTILE: HOSTILE})
SOURCE = Source(topic=HOSTILE, partition=0, offset=0)


@pytest.fixture
def zimage(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Zimage:
    """Runs the command in this process. Returns its stdout and stderr, which must be harmless."""
    for name in [name for name in os.environ if name.startswith("ZIMAGE_")]:
        monkeypatch.delenv(name)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)

    def run(*words: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["zimage", *words])
        capfdbinary.readouterr()
        with pytest.raises(SystemExit):
            main()
        out, err = capfdbinary.readouterr()
        return assert_harmless(out), assert_harmless(err)

    return run


@pytest.fixture
def everything(settings: Settings, store: ImageStore) -> None:
    """Requests, results and dead letters with hostile text in every text field."""
    producer = Producer(producer_config(settings.kafka))
    topics = settings.topics
    value = Codec().encode_request(REQUEST, topics.requests)
    producer.produce(topics.requests, value=value, key=HOSTILE.encode())
    producer.flush(120)
    refused = replace(failed(REQUEST, SOURCE), error=Failure(code=HOSTILE, message=HOSTILE, retriable=False))
    named = PromptRequest(prompt="a", request_id="a", tenant="a", attributes={HOSTILE: HOSTILE})
    elsewhere = succeeded(named, SOURCE, store)
    assert elsewhere.image is not None
    # A hash of its own, or the folder would already contain that image.
    gone = replace(elsewhere.image, key="a/gone.png", uri=HOSTILE, bucket=HOSTILE, sha256="0" * 64)
    lost = replace(elsewhere, image=gone, worker=HOSTILE)
    ResultWriter(settings).write([refused, elsewhere, lost])
    for code, body in ((HOSTILE, value), ("INVALID_REQUEST", value), ("UNDECODABLE", HOSTILE.encode())):
        _write_dead_letter(producer, topics.dead_letters, code, body)
    producer.flush(120)


def _write_dead_letter(producer: Producer, topic: str, code: str, value: bytes) -> None:
    headers = dead_letter_headers(
        [(HOSTILE.replace("\0", ""), HOSTILE.encode()), ("mine", b"\xff")],
        topic=HOSTILE,
        partition=0,
        offset=0,
        exception_class=HOSTILE,
        message=HOSTILE,
        code=code,
        attempts=1,
        worker=HOSTILE,
        at=datetime.now(UTC),
    )
    pairs: list[tuple[str, str | bytes | None]] = list(headers)
    producer.produce(topic, key=HOSTILE.encode(), value=value, partition=0, headers=pairs)


def objects(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def prints(zimage: Zimage, words: Iterable[str]) -> str:
    return zimage(*words)[0]


@pytest.mark.usefixtures("everything")
def test_no_command_prints_it_unescaped(zimage: Zimage, tmp_path: Path) -> None:
    assert "[red]:star:[/red]" in prints(zimage, ["results"])
    assert HOSTILE in [one["request_id"] for one in objects(prints(zimage, ["results", "--json"]))]
    assert "not saved" in zimage("results", "--out", str(tmp_path / "out"))[1]
    for words in (
        ["results", "--id", f"other{HOSTILE}"],
        ["results", "--follow", "--id", f"other{HOSTILE}", "--timeout", "0"],
        ["status"],
        ["status", "--json"],
        ["status", ID],
        ["status", ID, "--json"],
        ["status", f"other{HOSTILE}"],
        ["topics", "check"],
    ):
        assert "".join(zimage(*words)), words


@pytest.mark.usefixtures("everything")
def test_no_dead_letters_command_prints_it_unescaped(zimage: Zimage) -> None:
    assert "[red]:star:[/red]" in prints(zimage, ["dead-letters", "list"])
    assert "\\u001b]52" in prints(zimage, ["dead-letters", "list", "--code", "INVALID_REQUEST"])
    for place in ("0:0", "0:1", "0:2"):
        assert "\\u001b]52" in prints(zimage, ["dead-letters", "show", place])
    exported = objects(prints(zimage, ["dead-letters", "export"]))
    assert [one["message"] for one in exported] == [HOSTILE] * 3
    replay = ["dead-letters", "replay"]
    for words in (
        ["dead-letters", "list", "--json"],
        ["dead-letters", "show", "0:0", "--json"],
        ["dead-letters", "show", HOSTILE],
        [*replay, "--all", "--dry-run"],
        [*replay, "--all", "--dry-run", "--json"],
        [*replay, "--at", "0:2", "--set", "width=64"],
        [*replay, "--at", "0:0", "--set", f"tenant={HOSTILE}"],
        [*replay, "--at", "0:0", "--set", HOSTILE],
        [*replay, "--all"],
        [*replay, "--all"],
    ):
        assert "".join(zimage(*words)), words


def test_refused_input_is_quoted_harmlessly(
    zimage: Zimage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "rows.csv"
    quoted = HOSTILE.replace("\0", "").replace("\n", " ").replace("\r", " ")
    table.write_text(f"prompt,{quoted},width,width\na,b,1,1\n", encoding="utf-8")
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": HOSTILE, "width": HOSTILE, HOSTILE: HOSTILE}
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(HOSTILE)}\n{HOSTILE}\n", encoding="utf-8")
    for words in (
        ["produce", HOSTILE],
        ["produce", "a", "--request-id", HOSTILE],
        ["produce", "a", "--expires-at", HOSTILE],
        ["produce", "a", "--attribute", HOSTILE],
        ["produce", "--file", str(table)],
        ["produce", "--file", str(rows)],
        ["produce", "--file", str(tmp_path / f"no{quoted}.csv")],
        [quoted],
        ["produce", f"--no{quoted}"],
        ["--config", str(tmp_path / f"no{quoted}.toml"), "results"],
    ):
        assert "".join(zimage(*words)), words
    monkeypatch.setenv("ZIMAGE_ENGINE__ATTENTION", "\x1b\x9b".join("[red]a"))
    for words in (["config", "show"], ["config", "show", "--json"]):
        assert "".join(zimage(*words)), words
