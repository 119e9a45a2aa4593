"""The lines of what is being generated."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rich.progress import Progress as Live

from tests.hostile import HOSTILE
from zimage_stream import Source
from zimage_stream.cli import running
from zimage_stream.cli.running import SHOWN, RunningLines, live_lines, progress_as_line
from zimage_stream.events.progress import Progress, ProgressStage


def event(stage: ProgressStage, offset: int = 0, step: int = 0) -> Progress:
    source = Source(topic="requests", partition=0, offset=offset)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Progress(request_id=f"r{offset}", source=source, stage=stage, step=step, steps=8, at=at)


@pytest.fixture
def live() -> Live:
    return Live(console=Console(file=io.StringIO(), force_terminal=True), auto_refresh=False)


def shown(live: Live) -> list[tuple[str, float | None, float]]:
    """Text, total and completed of the visible lines."""
    return [(task.description, task.total, task.completed) for task in live.tasks if task.visible]


def test_a_line_follows_its_request_and_leaves_with_its_result(live: Live) -> None:
    lines = RunningLines(live)
    seen = []
    for each in (
        event(ProgressStage.STARTED),
        event(ProgressStage.STEP, step=3),
        event(ProgressStage.RETRYING),
        event(ProgressStage.STARTED),
        event(ProgressStage.GENERATED, step=8),
        event(ProgressStage.UNKNOWN),
    ):
        lines.note(each, "a heron")
        seen += shown(live)
    assert seen == [
        ("a heron: being generated", None, 0),
        ("a heron: step 3 of 8", 8, 3),
        ("a heron: failed, will be tried again", None, 0),
        ("a heron: being generated", None, 0),
        ("a heron: being stored", 8, 8),
        ("a heron: being generated", None, 0),
    ]
    lines.ended(event(ProgressStage.STARTED).source)
    assert shown(live) == []
    # Progress may be read after the result.
    lines.note(event(ProgressStage.STEP, step=8), "a heron")
    assert shown(live) == []


def test_only_the_oldest_are_shown_and_all_are_counted(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "MAX_RUNNING", SHOWN + 2)
    lines = RunningLines(live)
    for offset in range(SHOWN + 5):
        lines.note(event(ProgressStage.STARTED, offset), f"r{offset}")
    count, *names = [text for text, _, _ in shown(live)]
    assert count == f"{SHOWN + 2} are being generated; the oldest {SHOWN}:"
    assert names == [f"r{offset}: being generated" for offset in range(3, SHOWN + 3)]
    for offset in range(SHOWN + 5):
        lines.ended(event(ProgressStage.STARTED, offset).source)
        assert len(shown(live)) <= SHOWN + 1
    assert shown(live) == []


def test_names_are_shown_as_they_are_and_harmless(live: Live) -> None:
    lines = RunningLines(live_lines())
    lines.note(event(ProgressStage.STARTED), HOSTILE)
    lines = RunningLines(live)
    lines.note(event(ProgressStage.STARTED), "[red]\x1b[2J\n" + "long " * 100)
    ((text, _, _),) = shown(live)
    assert text.startswith("[red]\\u001b[2J\\n")
    assert len(text) < 80


def test_without_a_terminal_there_are_no_lines() -> None:
    assert live_lines().disable


@pytest.mark.parametrize(
    ("stage", "line"),
    [
        (ProgressStage.STARTED, "STARTED   r0"),
        (ProgressStage.STEP, "STEP      r0  3 of 8"),
        (ProgressStage.GENERATED, "GENERATED r0"),
    ],
)
def test_in_a_log_there_is_one_line_per_event(stage: ProgressStage, line: str) -> None:
    assert progress_as_line(event(stage, step=3)) == line
