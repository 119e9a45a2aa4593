"""The stack that this project replaces, as its authors describe it: Redis, and RQ workers doing all in line.

A worker takes a job, generates, encodes the PNG as ComfyUI does (Pillow, level 4), stores it and returns;
then it takes the next. The engine, its time and its pictures are those of ``engine.kind=simulated``, the
store is the same MinIO. RQ's ``SimpleWorker`` is used, which does not fork for every job: the kinder choice.
"""

from __future__ import annotations

import io
import sys
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any

from minio import Minio
from rq import Queue
from rq.job import Job

from benchmarks.program import Program
from benchmarks.redis_server import RedisServer
from benchmarks.workers import until
from zimage_stream.engines import ImageSpec
from zimage_stream.engines.simulated import SimulatedEngine
from zimage_stream.settings import Settings, environment_of, load_settings

QUEUE = "pictures"
COMFYUI_LEVEL = 4


@dataclass(frozen=True)
class Done:
    """A job that has ended: UNIX times of its generation's start and of its object being there."""

    name: str
    started: float
    stored: float


class SeedStack:
    """Redis and RQ workers. A context manager: nothing of it is left at the end.

    Args:
        settings: its engine and its store are used.
    """

    def __init__(self, settings: Settings, workers: int = 1) -> None:
        self._settings = settings
        self._count = workers
        self._redis = RedisServer()
        self._queue = Queue(QUEUE, connection=self._redis.client)

    def __enter__(self) -> SeedStack:
        with ExitStack() as stack:
            stack.enter_context(self._redis)
            program = [
                "-m",
                "rq.cli",
                "worker",
                "--worker-class",
                "rq.SimpleWorker",
                "--url",
                self._redis.url,
            ]
            for _ in range(self._count):
                environment = environment_of(self._settings)
                stack.enter_context(Program(sys.executable, *program, QUEUE, environment=environment))
            # Each has its scenery made and its connection to the store open.
            names = self.submit(f"warm-{uuid.uuid4().hex}" for _ in range(4 * self._count))
            until(lambda: len(self.done(names)) == len(names), "the RQ workers work")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def submit(self, names: Iterable[str], side: int = 1024) -> list[str]:
        """Queue a picture for each name; returns the names."""
        data = [
            Queue.prepare_data(make_picture, (name, side), job_id=name, result_ttl=86_400) for name in names
        ]
        self._queue.enqueue_many(data)
        return [each.job_id for each in data]

    def done(self, names: list[str]) -> list[Done]:
        """Those that have ended. Raises SystemExit where one has failed."""
        out = []
        for job in Job.fetch_many(names, connection=self._redis.client):
            if job is not None and job.is_failed:
                raise SystemExit(f"an RQ job failed: {job.latest_result()}")
            if job is not None and job.is_finished:
                out.append(Done(job.id, *job.return_value()))  # type: ignore[misc]
        return out

    def ended(self) -> tuple[set[str], set[str]]:
        """Names of all that have succeeded, and of all that have failed; cheaper to ask for than jobs are."""
        succeeded, failed = self._queue.finished_job_registry, self._queue.failed_job_registry
        return set(succeeded.get_job_ids(cleanup=False)), set(failed.get_job_ids(cleanup=False))


def make_picture(name: str, side: int) -> tuple[float, float]:
    """The job: generate, encode, store. Returns when generation began and when the object was there."""
    engine, store, bucket = _tools()
    started = time.time()
    spec = ImageSpec(name, side, side, 8, 0.0, 1)
    (image,) = engine.generate([spec])
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=COMFYUI_LEVEL)
    size = out.tell()
    out.seek(0)
    store.put_object(bucket, f"rq/{name}.png", out, size, "image/png")
    return started, time.time()


@cache
def _tools() -> tuple[SimulatedEngine, Any, str]:
    settings = load_settings()
    engine = SimulatedEngine.from_settings(settings.engine)
    engine.load()
    store, secret = settings.store, settings.store.secret_key
    assert secret is not None
    client = Minio(store.endpoint, store.access_key, secret.get_secret_value(), secure=store.secure)
    return engine, client, store.bucket
