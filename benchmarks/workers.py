"""What the benchmarks share: topics of their own, and ``zimage worker`` as an operator runs it."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from confluent_kafka.admin import AdminClient

from zimage_stream import ImageResult, PromptClient
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.topics import create_topics, required_topics
from zimage_stream.settings import Settings, environment_of, load_settings

T = TypeVar("T")

Guarantee = Literal["exactly_once", "at_least_once"]

WORKER = ("zimage_stream", "worker")
NULL_WORKER = ("benchmarks.null_worker",)
"""A worker whose engine and store take no time."""


@contextmanager
def fresh_settings(partitions: int = 12, **groups: Mapping[str, Any]) -> Iterator[Settings]:
    """The settings in force, with new topics and a new group; the topics are deleted afterwards.

    Args:
        groups: settings by group, over those in force: ``engine={"kind": "simulated"}``.
    """
    name = f"benchmark-{uuid.uuid4().hex[:8]}"
    given: dict[str, dict[str, Any]] = {
        "topics": {
            "requests": name,
            "results": f"{name}.results",
            "dead_letters": f"{name}.dead",
            "cancellations": f"{name}.cancellations",
            "progress": f"{name}.progress",
        },
        "worker": {"group_id": name},
        "telemetry": {"port": 0},
    }
    values = {group: {**given.get(group, {}), **groups.get(group, {})} for group in {*given, *groups}}
    settings = load_settings(None, values)
    create_topics(settings.kafka, settings.topics, request_partitions=partitions)
    try:
        yield settings
    finally:
        admin = AdminClient(common_config(settings.kafka))
        gone = admin.delete_topics([spec.name for spec in required_topics(settings.topics)])
        for future in gone.values():
            future.result(30)


class Workers:
    """A running ``zimage worker`` and its log. A context manager: stopped at the end.

    Args:
        arguments: after ``zimage worker``.
        program: the module to run instead, and its first arguments.
    """

    def __init__(self, settings: Settings, *arguments: str, program: Sequence[str] = WORKER) -> None:
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *program, *arguments],
                env=environment_of(settings),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.unlink()

    def words(self) -> str:
        """The log so far."""
        if self._process.poll() is not None:
            raise SystemExit(f"the worker ended:\n{self._log.read_text()[-3000:]}")
        return self._log.read_text(errors="replace")

    def lines(self, message: str) -> list[dict[str, Any]]:
        """The log's lines that say so, oldest first."""
        found = (json.loads(line) for line in self.words().splitlines() if f'"{message}' in line)
        return [line for line in found if line["message"].startswith(message)]

    def wait_for(self, message: str, count: int) -> None:
        """Until the log says so that often."""
        until(lambda: len(self.lines(message)) >= count, f"the workers say {message!r} {count} times")

    def processes(self) -> dict[str, int]:
        """Process id of the latest worker in each slot."""
        return {
            slot: int(pid) for slot, pid in re.findall(r"worker (\S+) started, process (\d+)", self.words())
        }


@contextmanager
def answers(settings: Settings) -> Iterator[Callable[[int], list[ImageResult]]]:
    """Gives a call that waits for so many more results and returns them; from now on."""
    with PromptClient(settings) as client, client.open_reader() as reader:

        def take(count: int, silence_s: float = 120.0) -> list[ImageResult]:
            out: list[ImageResult] = []
            deadline = time.monotonic() + silence_s
            while len(out) < count:
                result = reader.poll(0.5)
                if result is not None:
                    out.append(result)
                    deadline = time.monotonic() + silence_s
                elif time.monotonic() > deadline:
                    raise SystemExit(f"{count} results were to come, and after {len(out)} there is silence")
            return out

        yield take


def until(condition: Callable[[], T], what: str, timeout_s: float = 600.0) -> T:
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return value


def peak_resident_bytes(pid: int) -> int:
    """The most memory that a process has ever had (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed. Pure."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in the machine's memory (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
