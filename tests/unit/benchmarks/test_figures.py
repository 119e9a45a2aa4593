"""How benchmark figures are computed, and the page that is rendered from them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.hundred_users import schedule
from benchmarks.overhead import STAGES, WORKER_STAGES, stages_of
from benchmarks.page import FOLDER, PAGE, TITLES, section, table
from benchmarks.report import Plot, Report, publish, shown
from benchmarks.report import table as for_people
from benchmarks.saturation import Run, cost_of_progress
from benchmarks.workers import percentile

REPORT = Report(("stack", "images/s"), [("ours", 3.14159), ("theirs", None)], ["It is 3 times as fast."])


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.01, 1.0))
def test_a_percentile_is_exceeded_by_at_most_the_remaining_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value > found for value in values) <= (1 - share) * len(values) + 1e-9
    assert percentile(values, 1.0) == max(values)


def test_the_busy_share_of_a_device() -> None:
    assert Run([10.0, 11.0, 12.0], [11.5, 12.5, 13.5]).busy(1.0) == 1.0
    assert Run([10.0, 12.0], [12.0, 14.0]).busy(1.0) == pytest.approx(2 / 3)
    assert Run([10.0, 12.0], [12.0, 14.0]).images_a_second == 0.5


@pytest.mark.parametrize(
    ("steps", "verdict"), [((0.99, 0.95, 0.99), "1.00% with steps, MORE THAN 0.5%"), ((1.0,), "within 0.5%")]
)
def test_progress_is_compared_by_its_medians(steps: tuple[float, ...], verdict: str) -> None:
    told = cost_of_progress({"off": (0.2, 1.0, 1.0), "stages": (1.0, 0.1, 1.0), "steps": steps})
    assert told.startswith("Without progress the device is busy 100.00% of the time. Lost: 0.00% with stages")
    assert told.endswith(f"{verdict}.")


def test_stages_add_up_to_the_total_in_any_order() -> None:
    spans = {stage: (10.0 + number, 10.5 + number) for number, stage in enumerate(WORKER_STAGES)}
    for accepted in (9.5, 12.0):
        stages = stages_of(spans, 9.0, accepted, 20.0)
        assert sum(stages[stage] for stage in STAGES) == pytest.approx(stages["whole"]) == 11.0
        assert min(stages.values()) >= 0
    overlapping = spans | {"look up": (11.25, 11.75)}
    assert stages_of(overlapping, 9.0, 9.5, 20.0)["look up"] == 0.25


def test_the_same_seed_gives_the_same_arrivals() -> None:
    arrivals = schedule(5.0, 20.0, ["a", "b"], "seed")
    assert arrivals == schedule(5.0, 20.0, ["a", "b"], "seed") != schedule(5.0, 20.0, ["a", "b"], "other")
    assert len(arrivals) == 100
    assert arrivals == sorted(arrivals)
    assert {user for _, user in arrivals} == {"a", "b"}


def test_figures_are_formatted_for_people() -> None:
    cells = (None, "a", 3, 12_345, 0.98765, 1234.5, 12.345)
    assert [shown(cell) for cell in cells] == ["", "a", "3", "12,345", "0.988", "1,234", "12.3"]
    assert for_people(REPORT) == "stack   images/s\nours        3.14\ntheirs"


def test_a_published_report_becomes_a_section_of_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = Plot(
        "bars", "", "images/s", {"ours": [("one", 3.1)], "theirs": [("one", 1.0)]}, line=(2.0, "goal")
    )
    report = Report(REPORT.columns, REPORT.rows, REPORT.findings, plot)
    path = tmp_path / "saturation.json"
    publish(report, argparse.Namespace(json=path, quick=False))
    assert "It is 3 times as fast." in capsys.readouterr().out
    assert "<svg" in path.with_suffix(".svg").read_text()
    words = section("saturation", json.loads(path.read_text()))
    assert "| ours | 3.14 |" in words
    assert "python -m benchmarks.saturation\n```" in words
    assert "**It is 3 times as fast.**" in words
    assert "benchmarks/saturation.svg" in words


def test_the_page_contains_the_stored_figures() -> None:
    page = PAGE.read_text()
    for name in TITLES:
        assert table(json.loads((FOLDER / f"{name}.json").read_text())) in page
