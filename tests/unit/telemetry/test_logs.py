from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest

from tests.hostile import HOSTILE, assert_harmless
from zimage_stream.errors import RequestError
from zimage_stream.settings import TelemetrySettings
from zimage_stream.telemetry.logs import QUOTED, configure

OURS = ("zimage_stream", "zimage_consumers", "zimage_producers")
REQUEST = {"request_id": "r-1", "tenant": "studio", "partition": 3, "offset": 17, "attempt": 2}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *OURS)}
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


@pytest.mark.parametrize("name", OURS)
def test_a_line_is_one_json_object(capsys: pytest.CaptureFixture[str], name: str) -> None:
    configure(TelemetrySettings(), slot="gpu/0")
    logging.getLogger(f"{name}.somewhere").info("two\nlines of 狐狸: %d", 7, extra=REQUEST)
    [line] = logged(capsys)
    at = datetime.fromisoformat(line.pop("time"))
    assert at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert line == REQUEST | {
        "level": "INFO",
        "logger": f"{name}.somewhere",
        "message": "two\nlines of 狐狸: 7",
        "slot": "gpu/0",
    }


def test_text_is_not_escaped_to_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    configure(TelemetrySettings(), slot="s")
    logging.getLogger("zimage_stream").info("狐狸")
    assert "狐狸" in capsys.readouterr().err


def test_a_traceback_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(TelemetrySettings(), slot="s")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("zimage_stream").exception("it failed")
    [line] = logged(capsys)
    assert line["message"] == "it failed"
    assert "ValueError: broken" in line["exc_info"]


@pytest.mark.parametrize(
    ("level", "expected"),
    [("DEBUG", ["debug", "info", "warning"]), ("INFO", ["info", "warning"]), ("WARNING", ["warning"])],
)
def test_the_level_applies_only_to_our_loggers(
    capsys: pytest.CaptureFixture[str],
    level: Literal["DEBUG", "INFO", "WARNING"],
    expected: list[str],
) -> None:
    configure(TelemetrySettings(log_level=level), slot="s")
    for name in ("zimage_consumers.image_worker", "urllib3"):
        log = logging.getLogger(name)
        log.debug("debug")
        log.info("info")
    logging.getLogger("zimage_consumers").warning("warning")
    assert [line["message"] for line in logged(capsys)] == expected


def test_configuring_twice_does_not_duplicate_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure(TelemetrySettings(), slot="first")
    configure(TelemetrySettings(), slot="second")
    logging.getLogger("zimage_stream").info("once")
    assert [line["slot"] for line in logged(capsys)] == ["second"]


def test_the_console_format_shows_a_requests_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure(TelemetrySettings(log_format="console"), slot="s")
    logging.getLogger("zimage_stream").info("plain")
    logging.getLogger("zimage_stream").warning("about one", extra=REQUEST | {"tenant": None})
    plain, about = capsys.readouterr().err.splitlines()
    assert plain.endswith("INFO    plain")
    assert about.endswith("WARNING about one [r-1 3:17 attempt 2]")


MUCH = "长" * (4 << 20)
LONGEST_LINE_BYTES = 64 << 10


class TestHugeText:
    """Megabytes of text from a record or a server."""

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_a_line_is_shortened_and_stays_recognizable(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format, log_prompts=True), slot="s")
        more = {"request_id": MUCH, "tenant": MUCH, "prompt": MUCH, "code": MUCH, "listed": [MUCH]}
        logging.getLogger("zimage_stream").warning("it says %s; do this", MUCH, extra=REQUEST | more)
        line = capsys.readouterr().err
        assert len(line.encode()) < LONGEST_LINE_BYTES
        assert f"({len(MUCH)} characters)" in line
        assert "it says 长" in line
        # The end of a message states the remedy.
        assert "; do this" in line

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_a_traceback_and_quoted_output_are_shortened(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format), slot="s")
        try:
            raise ValueError(MUCH + "\n" * len(MUCH))
        except ValueError:
            logging.getLogger("zimage_stream").exception("it failed", extra={QUOTED: MUCH})
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert len(err.encode()) < 2 * LONGEST_LINE_BYTES

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_valid_fields_are_logged_in_full(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format, log_prompts=log_format == "json"), slot="s")
        longest = {"request_id": "r" * 128, "tenant": "t" * 128, "prompt": "长" * 2_000}
        logging.getLogger("zimage_stream").info("generated", extra=REQUEST | longest)
        line = capsys.readouterr().err
        assert "characters)" not in line
        assert "r" * 128 in line
        assert "t" * 128 in line


class TestHostileText:
    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_a_record_cannot_add_lines_or_control_the_terminal(
        self, capfdbinary: pytest.CaptureFixture[bytes], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format, log_prompts=True), slot=HOSTILE)
        hostile = REQUEST | {"request_id": HOSTILE, "tenant": HOSTILE, "prompt": HOSTILE}
        logging.getLogger("zimage_stream").warning("dead letter: %s", HOSTILE, extra=hostile)
        [line] = assert_harmless(capfdbinary.readouterr().err).splitlines()
        assert "[red]:star:[/red]" in line

    def test_quoted_output_of_another_program_is_indented(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure(TelemetrySettings(log_format="console"), slot="s")
        logging.getLogger("zimage_stream").error("it died", extra={QUOTED: f"one\n{HOSTILE}\n"})
        first, *quoted = assert_harmless(capsys.readouterr().err.encode()).splitlines()
        assert first.endswith("it died")
        assert quoted[0] == "  one"
        assert all(line.startswith("  ") for line in quoted)

    def test_a_traceback_is_indented(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure(TelemetrySettings(log_format="console"), slot="s")
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logging.getLogger("zimage_stream").exception("it failed")
        first, *others = assert_harmless(capsys.readouterr().err.encode()).splitlines()
        assert first.endswith("it failed")
        assert all(line.startswith("  ") for line in others)

    @pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
    def test_json_is_valid_in_any_encoding(self, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", write_through=True)
        monkeypatch.setattr(sys, "stderr", stream)
        configure(TelemetrySettings(), slot="s")
        logging.getLogger("zimage_stream").warning("é狐😀")
        assert json.loads(raw.getvalue().decode("utf-8"))["message"] == "é狐😀"


class TestPrompts:
    REFUSED = RequestError("prompt", "no control characters", "a secret wish\x07")

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_are_not_logged(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format), slot="s")
        logging.getLogger("zimage_stream").info("generated", extra={"prompt": "a secret wish"})
        logging.getLogger("zimage_stream").warning("dead letter: %s", self.REFUSED)
        err = capsys.readouterr().err
        assert "secret" not in err
        assert "no control characters" in err
        assert len(err.splitlines()) == 2

    @pytest.mark.parametrize("log_format", ["json", "console"])
    def test_are_logged_if_enabled(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["json", "console"]
    ) -> None:
        configure(TelemetrySettings(log_format=log_format, log_prompts=True), slot="s")
        logging.getLogger("zimage_stream").info("generated", extra={"prompt": "a secret wish"})
        logging.getLogger("zimage_stream").warning("dead letter: %s", self.REFUSED)
        assert capsys.readouterr().err.count("a secret wish") == 2

    def test_refused_values_of_other_fields_are_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure(TelemetrySettings(), slot="s")
        refused = RequestError("width", "a multiple of 16", 1000)
        logging.getLogger("zimage_stream").warning("dead letter: %s", refused)
        assert logged(capsys)[0]["message"] == "dead letter: width: got 1000, takes a multiple of 16"
