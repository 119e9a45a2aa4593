"""``zimage worker`` with several workers: one death touches nobody else, and none outlives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.arena import Arena
from tests.fleet.workers import until
from zimage_stream import PromptRequest
from zimage_stream.settings import environment_of


class Supervised:
    def __init__(self, arena: Arena, log: Path) -> None:
        self.log = log
        environment = environment_of(arena.settings) | {"ZIMAGE_ENGINE__SIMULATED_MS": "100"}
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


def test_workers_end_with_a_supervisor_that_is_killed(supervised: Supervised) -> None:
    supervised.process.kill()
    until(lambda: not any(alive(pid) for pid in supervised.started()), 40, "the workers have ended")
