"""One run: a scenario's faults over a workload, on topics and a bucket of its own, judged at the end."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import broker_scenarios, hostile, scenarios
from tests.chaos.broker_scenarios import RECOVERY_S, BrokerScenario
from tests.chaos.scenarios import CLIENTS
from tests.chaos.stage import Row, Services, open_stage
from tests.chaos.workloads import WORKLOADS
from tests.fleet.arena import open_arena
from tests.fleet.topics import topics_named
from tests.services.native.cluster import COPIES, KafkaCluster
from tests.services.native.kafka import Kafka
from tests.services.native.minio import Minio
from zimage_stream.kafka.topics import create_topics
from zimage_stream.settings import StoreSettings

PARTITIONS = 12
SCENARIOS = scenarios.SCENARIOS | broker_scenarios.SCENARIOS | hostile.SCENARIOS


@contextmanager
def open_services(folder: Path) -> Iterator[Services]:
    """A store, and the broker or three brokers that runs need; a run may kill any of them."""
    services = Services(Kafka(folder / "kafka"), Minio(folder / "minio"), KafkaCluster(folder / "cluster"))
    try:
        services.minio.start()
        yield services
    finally:
        services.cluster.stop()
        services.kafka.stop()
        services.minio.stop()


def play(
    services: Services, scenario: str, workload: str, folder: Path, seed: int, scale: float = 1.0
) -> Row:
    """Play a scenario over a workload and return the judge's report.

    Args:
        folder: for logs, and for the files that judge and stage exchange; created if missing.
        scale: how much longer the run is than the short form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"chaos-{uuid.uuid4().hex[:8]}"
    topics = topics_named(name)
    chosen = SCENARIOS[scenario]
    on_cluster = isinstance(chosen, BrokerScenario)
    broker = services.cluster if on_cluster else services.kafka
    services.use(broker)
    if isinstance(chosen, BrokerScenario) and chosen.copies:
        services.cluster.make_topic(topics.requests, chosen.copies, chosen.config)
    create_topics(
        broker.settings,
        topics,
        request_partitions=PARTITIONS,
        replication_factor=COPIES if on_cluster else 1,
    )
    store = services.minio.address.settings(name)
    if chosen.directory:
        store = StoreSettings(kind="directory", path=folder / "objects")
    arena = open_arena(broker.settings, store, topics, folder, {"kafka": {"extra": CLIENTS}})
    if not chosen.directory:
        arena.store.make_bucket(name)
    with (
        arena.fleet,
        open_stage(arena, services, folder, PARTITIONS, chosen.settings, seed) as stage,
        ThreadPoolExecutor(1, "workload") as pool,
    ):
        stage.playing.set()
        working = pool.submit(WORKLOADS[workload], stage, random.Random(seed))
        try:
            chosen.play(stage, scale)
        finally:
            stage.playing.clear()
        working.result(300)
        title = scenario if workload == "steady" else f"{scenario}, {workload}"
        return stage.close(title, RECOVERY_S if on_cluster else None)
