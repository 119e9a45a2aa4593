"""The peers on Redis, each with one worker process, and a client that asks them as their documents say."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import celery
import dramatiq
from celery.result import ResultSet
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from rq import Queue
from rq.results import Result

from benchmarks.program import Program
from benchmarks.redis_server import RedisServer

Serve = Callable[[int], None]
"""Publishes so many requests, and returns when the results of all of them have been read."""

SILENCE_S = 120
QUEUE = "pictures"


def request(number: int) -> dict[str, Any]:
    """What the peers are asked, with as much in it as a ``PromptRequest``."""
    return {
        "request_id": str(uuid.uuid4()),
        "tenant": "default",
        "prompt": f"picture {number}",
        "width": 64,
        "height": 64,
        "steps": 8,
        "seed": number,
    }


@contextmanager
def rq() -> Iterator[Serve]:
    """RQ. Its ``SimpleWorker`` does not fork for every job: the kinder choice."""
    worker = ["-m", "rq.cli", "worker", "--quiet", "--worker-class", "rq.SimpleWorker"]
    with RedisServer() as redis, Program(sys.executable, *worker, "--url", redis.url, QUEUE):
        queue = Queue(QUEUE, connection=redis.client)

        def serve(count: int) -> None:
            work = "benchmarks.peers_programs.work.work"
            jobs = queue.enqueue_many(
                [Queue.prepare_data(work, (request(number),)) for number in range(count)]
            )
            for job in jobs:
                result = job.latest_result(timeout=SILENCE_S)
                if result is None or result.type is not Result.Type.SUCCESSFUL:
                    raise SystemExit(f"RQ did not answer: {result and result.exc_string}")

        yield serve


@contextmanager
def on_celery() -> Iterator[Serve]:
    """Celery, its worker without processes or threads beside the one that works."""
    worker = ["-m", "celery", "-A", "benchmarks.peers_programs.on_celery", "worker", "--pool", "solo"]
    with (
        RedisServer() as redis,
        Program(sys.executable, *worker, environment=_environment(redis)),
        celery.Celery("client", broker=redis.url, backend=redis.url) as client,
    ):

        def serve(count: int) -> None:
            sent = [client.send_task("work", (request(number),)) for number in range(count)]
            ResultSet(sent, app=client).get(timeout=SILENCE_S)

        yield serve


@contextmanager
def on_dramatiq() -> Iterator[Serve]:
    """Dramatiq, one process with one thread.

    It fetches 100 messages at a time: with its default, 2 for one thread, it waits 5 to 10 ms before each
    fetch, and is asleep most of the time where work takes none.
    """
    worker = ["-m", "dramatiq", "benchmarks.peers_programs.on_dramatiq", "--processes", "1", "--threads", "1"]
    with (
        RedisServer() as redis,
        Program(
            sys.executable, *worker, environment={**_environment(redis), "dramatiq_queue_prefetch": "100"}
        ),
    ):
        broker = RedisBroker(url=redis.url)  # type: ignore[no-untyped-call]
        results = RedisBackend(url=redis.url)
        broker.add_middleware(Results(backend=results))  # type: ignore[no-untyped-call]

        def serve(count: int) -> None:
            sent = [broker.enqueue(_message(request(number))) for number in range(count)]
            for message in sent:
                message.get_result(backend=results, block=True, timeout=SILENCE_S * 1_000)

        yield serve


def _environment(redis: RedisServer) -> dict[str, str]:
    return {**os.environ, "PEERS_REDIS": redis.url}


def _message(asked: dict[str, Any]) -> dramatiq.Message[Any]:
    return dramatiq.Message(queue_name="default", actor_name="work", args=(asked,), kwargs={}, options={})
