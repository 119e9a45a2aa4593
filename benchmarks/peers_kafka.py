"""The peers on Kafka, each with one worker process, and this project, beside each other on one broker."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from benchmarks.peers_redis import SILENCE_S, Serve, request
from benchmarks.program import Program
from benchmarks.workers import NULL_WORKER, WORKER, Guarantee, Workers, answers, fresh_settings, until
from tests.services.native.cache import announce, cached, run_tool
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.events.image_result import Status
from zimage_stream.kafka.clients import common_config, producer_config
from zimage_stream.kafka.topics import RESULT_PARTITIONS
from zimage_stream.settings import Settings

MEMORY = Path("/dev/shm")
COMMIT_INTERVAL_S = 0.3
"""Of Quix Streams where it is exactly once and shows results with every commit; its default is 5 s."""


@contextmanager
def faststream() -> Iterator[Serve]:
    """FastStream, which publishes a result and then acknowledges its request."""
    with (
        fresh_settings() as settings,
        Program(sys.executable, *_program("on_faststream", settings)),
        _client(settings) as serve,
    ):
        yield serve


@contextmanager
def quix(guarantee: Literal["exactly-once", "at-least-once"]) -> Iterator[Serve]:
    """Quix Streams under one of its guarantees."""
    interval = COMMIT_INTERVAL_S if guarantee == "exactly-once" else 5.0
    with fresh_settings() as settings, tempfile.TemporaryDirectory() as folder:
        program = _program("on_quix", settings, guarantee, str(interval), folder)
        with Program(str(_quix_python()), *program), _client(settings) as serve:
            yield serve


@contextmanager
def ours(guarantee: Guarantee, pictures: bool = False) -> Iterator[Serve]:
    """This project's worker.

    Args:
        pictures: they are drawn, without service time, and stored in a directory; else the work is nothing.
    """
    with (
        # In memory where the system has such a folder: nobody else here waits for a disk.
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        fresh_settings(
            engine={"kind": "simulated", "simulated_ms": 0},
            store={"kind": "directory", "path": folder},
            worker={"guarantee": guarantee},
        ) as settings,
        Workers(settings, program=WORKER if pictures else NULL_WORKER) as workers,
        PromptClient(settings) as client,
        answers(settings) as take,
    ):
        until(lambda: workers.lines("took over partitions"), "the worker is in the group")

        def serve(count: int) -> None:
            client.submit_many(
                PromptRequest(prompt=f"picture {number}", width=64, height=64, seed=number)
                for number in range(count)
            )
            failed = [result for result in take(count) if result.status is not Status.SUCCEEDED]
            if failed:
                raise SystemExit(f"a request failed: {failed[0]}")

        yield serve


@contextmanager
def _client(settings: Settings) -> Iterator[Serve]:
    """Asks what reads JSON from the requests topic and writes JSON to the results topic."""
    producer = Producer(producer_config(settings.kafka))
    consumer = Consumer(
        {
            **common_config(settings.kafka),
            "group.id": settings.worker.group_id + ".client",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    topic = settings.topics.results
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(RESULT_PARTITIONS)])

    def serve(count: int) -> None:
        missing = set()
        for number in range(count):
            asked = request(number)
            missing.add(asked["request_id"])
            producer.produce(settings.topics.requests, json.dumps(asked).encode(), asked["request_id"])
            producer.poll(0)
        producer.flush()
        deadline = time.monotonic() + SILENCE_S
        while missing:
            # No more than are to come: it waits until it has as many as it was asked for.
            records = consumer.consume(min(len(missing), 500), 1.0)
            if records:
                deadline = time.monotonic() + SILENCE_S
            elif time.monotonic() > deadline:
                raise SystemExit(f"{len(missing)} of {count} results have not come, and there is silence")
            for record in records:
                if record.error() is not None:
                    raise SystemExit(f"reading results: {record.error()}")
                missing.discard(json.loads(record.value() or b"{}")["request_id"])

    try:
        yield serve
    finally:
        consumer.close()


def _program(name: str, settings: Settings, *more: str) -> list[str]:
    topics = settings.topics
    servers = settings.kafka.bootstrap_servers
    return ["-m", f"benchmarks.peers_programs.{name}", servers, topics.requests, topics.results, *more]


def _quix_python() -> Path:
    """An environment with what ``quix.lock`` pins, made once."""
    lock = Path(__file__).with_name("quix.lock").absolute()
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]

    def build(folder: Path) -> None:
        announce("an environment for Quix Streams")
        uv = [sys.executable, "-m", "uv"]
        # Relocatable: it gets its name only when it is complete.
        run_tool([*uv, "venv", "--relocatable", "--python", sys.executable, "environment"], folder)
        python = str(folder / "environment/bin/python")
        run_tool([*uv, "pip", "install", "--python", python, "--require-hashes", "-r", str(lock)], folder)

    return cached(f"quix-{digest}-{platform.python_version()}", build) / "environment/bin/python"
