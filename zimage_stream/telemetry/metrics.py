"""Every metric of a worker, with its meaning and unit. This file is their documentation.

No label has a tenant or a request in it: cardinality is bounded by partitions, codes and states.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from zimage_stream.telemetry.health import Health

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The worker's metrics, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests_taken = Counter(
            "zimage_requests_taken_total", "Requests taken into the window.", registry=registry
        )
        self.results = Counter(
            "zimage_results_total", "Results published, by status.", ["status"], registry=registry
        )
        self.dead_letters = Counter(
            "zimage_dead_letters_total", "Dead letters published, by code.", ["code"], registry=registry
        )
        self.attempts = Counter(
            "zimage_attempts_total",
            "Attempts that did not end a request, by what follows.",
            ["outcome"],
            registry=registry,
        )
        self.engine_busy_seconds = Counter(
            "zimage_engine_busy_seconds_total",
            "Seconds the engine was generating; its rate is the busy share.",
            registry=registry,
        )
        self.generate_seconds = Histogram(
            "zimage_generate_seconds", "Generation of one batch.", buckets=_LONG, registry=registry
        )
        self.batch_size = Histogram(
            "zimage_batch_size", "Pictures in a batch.", buckets=(1, 2, 3, 4, 6, 8, 16), registry=registry
        )
        self.encode_seconds = Histogram(
            "zimage_encode_seconds", "Encoding of one picture.", buckets=_SHORT, registry=registry
        )
        self.upload_seconds = Histogram(
            "zimage_upload_seconds",
            "Upload of one picture, waiting for the store included.",
            buckets=_SHORT,
            registry=registry,
        )
        self.store_reused = Counter(
            "zimage_store_reused_total",
            "Requests whose picture was in the store already, so that none was generated.",
            registry=registry,
        )
        self.transactions = Counter(
            "zimage_transactions_total",
            "Publications, by outcome: committed, aborted, lost.",
            ["outcome"],
            registry=registry,
        )
        self.transaction_seconds = Histogram(
            "zimage_transaction_seconds",
            "One publication, from begin to committed.",
            buckets=_SHORT,
            registry=registry,
        )
        self.marks = Counter("zimage_marks_total", "Commits of marks.", registry=registry)
        self.rebalances = Counter(
            "zimage_rebalances_total",
            "Changes of the partitions held, by kind: assigned, revoked, lost.",
            ["kind"],
            registry=registry,
        )
        self.window_requests = Gauge(
            "zimage_window_requests", "Requests fetched and not yet resolved.", registry=registry
        )
        self.window_bytes = Gauge(
            "zimage_window_bytes", "Bytes of the requests in the window.", registry=registry
        )
        self.partitions = Gauge("zimage_partitions", "Partitions held.", registry=registry)


class HealthCollector(Collector):
    """The health of the worker as metrics, read when they are asked for."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ready, _ = self._health.ready()
        yield GaugeMetricFamily(
            "zimage_ready", "1 if the worker can serve; /readyz says why not.", value=ready
        )
        up = GaugeMetricFamily(
            "zimage_dependency_up",
            "1 if the dependency (kafka, store, registry) answered when it was last asked.",
            labels=["dependency"],
        )
        for name, is_up in self._health.dependencies().items():
            up.add_metric([name], is_up)
        yield up
