"""What the fault tests share: workers with a simulated engine on real Kafka and MinIO."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from tests.chaos.checker import Place, Report, check
from tests.chaos.fleet import Fleet, until
from zimage_stream import PromptClient, PromptRequest, load_settings
from zimage_stream.kafka.topics import create_topics
from zimage_stream.settings import Settings

_runs = itertools.count(1)


@dataclass
class Arena:
    """One run's topics, bucket, workers and sent records."""

    settings: Settings
    environment: dict[str, str]
    fleet: Fleet
    store: Minio
    accepted: dict[Place, str]

    def send(self, requests: list[PromptRequest]) -> list[str]:
        """Submit requests; returns their ids."""
        with PromptClient(self.settings) as client:
            futures = [(request, client.submit_nowait(request)) for request in requests]
            for request, future in futures:
                source = future.result(60)
                self.accepted[source.partition, source.offset] = request.request_id
        return [request.request_id for request in requests]

    def report(self) -> Report:
        topics = self.settings.topics
        kafka = {"bootstrap.servers": self.settings.kafka.bootstrap_servers}
        return check(kafka, topics.results, topics.dead_letters, self.store)

    def answered(self) -> int:
        """Records with a terminal event by now."""
        report = self.report()
        return len(report.results.keys() | report.dead.keys())

    def wait_answered(self, timeout_s: float, share: float = 1.0) -> Report:
        """Wait until that share of what was sent is answered, and report."""
        wanted = int(len(self.accepted) * share)
        until(lambda: self.answered() >= wanted, timeout_s, f"{wanted} records are answered")
        return self.report()

    def assert_exactly_once(self, report: Report) -> None:
        accepted = set(self.accepted)
        assert not report.missing(accepted)
        assert not report.foreign(accepted)
        assert report.duplicates == []
        assert report.mismatched == []
        failed = {place for place, (result, *_) in report.results.items() if result["status"] == "FAILED"}
        assert failed == report.dead.keys()


def make_arena(kafka: Any, minio: Any, folder: Path, partitions: int = 12, **environment: str) -> Arena:
    """An arena of its own on these services."""
    name = f"chaos-{next(_runs)}-{folder.name[-8:].lower().replace('_', '-')}"
    variables = {
        "ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        # The shortest session that a broker allows: a death is noticed sooner.
        "ZIMAGE_KAFKA__EXTRA": '{"session.timeout.ms": "6000"}',
        "ZIMAGE_TOPICS__REQUESTS": f"{name}.requests",
        "ZIMAGE_TOPICS__RESULTS": f"{name}.results",
        "ZIMAGE_TOPICS__DEAD_LETTERS": f"{name}.dead-letters",
        "ZIMAGE_STORE__ENDPOINT": minio.endpoint,
        "ZIMAGE_STORE__ACCESS_KEY": minio.access_key,
        "ZIMAGE_STORE__SECRET_KEY": minio.secret_key,
        "ZIMAGE_STORE__BUCKET": name,
        "ZIMAGE_ENGINE__KIND": "simulated",
        "ZIMAGE_WORKER__GROUP_ID": name,
        "ZIMAGE_TELEMETRY__PORT": "0",
        "ZIMAGE_TELEMETRY__LOG_LEVEL": "DEBUG",
        **environment,
    }
    with pytest.MonkeyPatch.context() as patch:
        for key, value in variables.items():
            patch.setenv(key, value)
        settings = load_settings()
    create_topics(settings.kafka, settings.topics, request_partitions=partitions)
    store = Minio(minio.endpoint, minio.access_key, minio.secret_key, secure=False)
    store.make_bucket(name)
    return Arena(settings, variables, Fleet(variables, folder), store, {})


@pytest.fixture
def arena(kafka: Any, minio: Any, tmp_path: Path) -> Iterator[Arena]:
    """An arena on the shared services."""
    made = make_arena(kafka, minio, tmp_path, ZIMAGE_ENGINE__SIMULATED_MS="320")
    with made.fleet:
        yield made


@pytest.fixture
def own_arena(own_kafka: Any, own_minio: Any, tmp_path: Path) -> Iterator[Arena]:
    """An arena on services that the test may kill."""
    made = make_arena(own_kafka, own_minio, tmp_path, ZIMAGE_ENGINE__SIMULATED_MS="320")
    with made.fleet:
        yield made
