"""``zimage worker`` with several workers: one death touches nobody else, and none outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.arena import Arena
from tests.fleet.workers import until
from zimage_stream import PromptRequest
from zimage_stream.settings import environment_of


class Supervised:
    def __init__(self, arena: Arena, log: Path, **more: str) -> None:
        self.log = log
        environment = environment_of(arena.settings) | {"ZIMAGE_ENGINE__SIMULATED_MS": "100"} | more
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zimage_stream", "worker", "--devices", "cpu:2"],
                env=environment,
                stdout=sink,
                stderr=sink,
            )

    def started(self) -> list[int]:
        """Process ids of every worker that was started so far."""
        return [int(pid) for pid in re.findall(r"started, process (\d+)", self.log.read_text())]

    def get(self, path: str) -> str:
        """What the supervisor's own port answers, whatever its status."""
        (port,) = re.findall(r"of all workers on port (\d+)", self.log.read_text())
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.read().decode()

    def slots_ready(self) -> int:
        return len(set(re.findall(r'took over partitions.*"slot": "([^"]+)"', self.log.read_text())))


@pytest.fixture
def supervised(arena: Arena, tmp_path: Path) -> Iterator[Supervised]:
    running = Supervised(arena, tmp_path / "supervisor.log")
    until(lambda: running.slots_ready() == 2, 60, "both workers have partitions")
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait(10)
    until(lambda: not any(alive(pid) for pid in running.started()), 40, "no worker outlives its supervisor")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def pictures(count: int) -> list[PromptRequest]:
    return [PromptRequest(prompt=f"picture {i}", width=256, height=256) for i in range(count)]


def test_a_worker_that_is_killed_is_started_again_and_the_other_goes_on(
    arena: Arena, supervised: Supervised
) -> None:
    first, second = supervised.started()
    arena.send(pictures(200))
    os.kill(first, signal.SIGKILL)
    until(lambda: len(supervised.started()) == 3, 20, "the killed one is started again")
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert alive(second)
    assert "killed by SIGKILL" in supervised.log.read_text()

    supervised.process.send_signal(signal.SIGTERM)
    assert supervised.process.wait(30) == 0


def test_one_port_shows_all_workers(arena: Arena, supervised: Supervised) -> None:
    until(lambda: supervised.get("/readyz") == '{"ready": true, "reasons": []}\n', 30, "all are ready")
    arena.send(pictures(40))
    arena.wait_answered(60)

    def results() -> dict[str, float]:
        """Results that each worker has published."""
        return {
            sample.labels["device"]: sample.value
            for family in text_string_to_metric_families(supervised.get("/metrics"))
            for sample in family.samples
            if sample.name == "zimage_results_total"
        }

    until(lambda: sum(results().values()) == 40, 20, "all are counted")
    assert results().keys() == {"cpu:0", "cpu:1"}
    os.kill(supervised.started()[0], signal.SIGKILL)
    until(lambda: "cpu:0: the worker does not run" in supervised.get("/readyz"), 20, "its death is told")
    assert 'zimage_worker_up{device="cpu:1"} 1.0' in supervised.get("/metrics")
    until(lambda: '"ready": true' in supervised.get("/readyz"), 40, "it is back")


def test_a_crash_loop_is_told_with_the_last_lines(arena: Arena, tmp_path: Path) -> None:
    running = Supervised(arena, tmp_path / "supervisor.log", ZIMAGE_STORE__BUCKET="nowhere")
    until(lambda: "is in a crash loop" in running.log.read_text(), 60, "the verdict")
    verdict = next(line for line in running.log.read_text().splitlines() if "is in a crash loop" in line)
    assert "there is no bucket 'nowhere'" in verdict
    until(lambda: "it died 4 times within 300 s" in running.get("/readyz"), 20, "its health says so")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(30) in (0, 1)


def test_workers_end_with_a_supervisor_that_is_killed(supervised: Supervised) -> None:
    supervised.process.kill()
    until(lambda: not any(alive(pid) for pid in supervised.started()), 40, "the workers have ended")
