"""Commands in separate processes, on a real broker, with a directory as the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import DEADLINE_S, Run, Start
from tests.services import KafkaAddress
from zimage_stream import Settings
from zimage_stream.settings import StoreSettings, TopicSettings
from zimage_stream.stores import ImageStore, create_store


@pytest.fixture
def settings(kafka: KafkaAddress, topics: TopicSettings, tmp_path: Path) -> Settings:
    store = StoreSettings(kind="directory", path=tmp_path / "store")
    return Settings(kafka=kafka.settings, topics=topics, store=store)


@pytest.fixture
def store(settings: Settings) -> Iterator[ImageStore]:
    store = create_store(settings.store)
    store.create()
    yield store
    store.close()


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts the command in a separate process, in a folder of its own."""
    started: list[subprocess.Popen[str]] = []
    env = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    env |= {
        "PYTHONUTF8": "1",
        "PYTHONFAULTHANDLER": "1",
        "ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "ZIMAGE_TOPICS__REQUESTS": settings.topics.requests,
        "ZIMAGE_TOPICS__RESULTS": settings.topics.results,
        "ZIMAGE_TOPICS__DEAD_LETTERS": settings.topics.dead_letters,
        "ZIMAGE_TOPICS__CANCELLATIONS": settings.topics.cancellations,
        "ZIMAGE_TOPICS__PROGRESS": settings.topics.progress,
        "ZIMAGE_STORE__KIND": "directory",
        "ZIMAGE_STORE__PATH": str(settings.store.path),
    }

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "zimage_stream", *words],
            cwd=tmp_path,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            # The traceback shows where it hung; pytest prints it for a failed test.
            process.send_signal(signal.SIGABRT)
            sys.stderr.write(process.communicate()[1])


@pytest.fixture
def zimage(start: Start) -> Run:
    def run(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        process = start(*words)
        out, err = process.communicate(stdin, timeout=DEADLINE_S)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run
