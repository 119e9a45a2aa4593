"""All metrics of a worker, with their meanings and units; ``docs/metrics.md`` is generated from this file.

No label identifies a request, and a label identifies a tenant only if the settings allow it: cardinality is
bounded by partitions, codes, states and ``MAX_TENANTS``.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from zimage_stream.telemetry.health import Health

_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)


_WAITS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

MAX_TENANTS = 50
"""Maximum number of tenants with their own series; all others are counted as ``(others)``."""


class Metrics:
    """The worker's metrics, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Info("zimage_build", "Version, model and engine of this worker.", registry=registry)
        self.requests_taken = Counter(
            "zimage_requests_taken_total", "Requests admitted to the window.", registry=registry
        )
        self.results = Counter(
            "zimage_results_total", "Results published, by status.", ["status"], registry=registry
        )
        self.dead_letters = Counter(
            "zimage_dead_letters_total", "Dead letters published, by code.", ["code"], registry=registry
        )
        self.attempts = Counter(
            "zimage_attempts_total",
            "Attempts that did not end a request, by the next step.",
            ["outcome"],
            registry=registry,
        )
        self.engine_busy_seconds = Counter(
            "zimage_engine_busy_seconds_total",
            "Seconds the engine spent generating; its rate is the busy fraction.",
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "zimage_wait_seconds",
            "Time from a request's timestamp to the start of its generation.",
            buckets=_WAITS,
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "zimage_decode_seconds",
            "Time to decode and check one record.",
            buckets=_SHORT,
            registry=registry,
        )
        self.mark_seconds = Histogram(
            "zimage_mark_seconds", "Time to commit marks once.", buckets=_SHORT, registry=registry
        )
        self.look_up_seconds = Histogram(
            "zimage_look_up_seconds",
            "Time to look up one image in the store.",
            buckets=_SHORT,
            registry=registry,
        )
        self.generate_seconds = Histogram(
            "zimage_generate_seconds", "Time to generate one batch.", buckets=_LONG, registry=registry
        )
        self.batch_size = Histogram(
            "zimage_batch_size", "Images in a batch.", buckets=(1, 2, 3, 4, 6, 8, 16), registry=registry
        )
        self.out_of_memory = Counter(
            "zimage_out_of_memory_total",
            "Batches that did not fit into the device's memory and were split.",
            registry=registry,
        )
        self.encode_seconds = Histogram(
            "zimage_encode_seconds", "Time to encode one image.", buckets=_SHORT, registry=registry
        )
        self.upload_seconds = Histogram(
            "zimage_upload_seconds",
            "Time to upload one image, including waits for the store.",
            buckets=_SHORT,
            registry=registry,
        )
        self.store_reused = Counter(
            "zimage_store_reused_total",
            "Requests whose image was already in the store, so that none was generated.",
            registry=registry,
        )
        self.cancelled = Counter(
            "zimage_cancelled_total",
            "Requests that ended because they were cancelled, by how far they had got.",
            ["stage"],
            registry=registry,
        )
        self.progress_events = Counter(
            "zimage_progress_events_total",
            "Progress events, by outcome: published; dropped, because a queue was full; failed, because the "
            "topic is missing or the brokers did not accept them.",
            ["outcome"],
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
            "Time of one publication, from its begin to its commit.",
            buckets=_SHORT,
            registry=registry,
        )
        self.marks = Counter("zimage_marks_total", "Commits of marks.", registry=registry)
        self.rebalances = Counter(
            "zimage_rebalances_total",
            "Changes of the assigned partitions, by kind: assigned, revoked, lost.",
            ["kind"],
            registry=registry,
        )
        self.window_requests = Gauge(
            "zimage_window_requests", "Requests fetched and not yet resolved.", registry=registry
        )
        self.window_bytes = Gauge(
            "zimage_window_bytes", "Bytes of the requests in the window.", registry=registry
        )
        self.partitions = Gauge("zimage_partitions", "Assigned partitions.", registry=registry)
        self.partitions_stalled = Gauge(
            "zimage_partitions_stalled",
            "Assigned partitions that deliver no records although their log has more; /readyz names them.",
            registry=registry,
        )
        self.queue_requests = Gauge(
            "zimage_queue_requests",
            "Requests that wait in the window, by tenant if telemetry.tenant_label is on.",
            ["tenant"],
            registry=registry,
        )
        self.unresolved_requests = Gauge(
            "zimage_unresolved_requests",
            "Requests without a terminal event, including those not fetched yet, by assigned partition.",
            ["partition"],
            registry=registry,
        )
        self.desired_workers = Gauge(
            "zimage_desired_workers",
            "Number of workers that would serve this worker's backlog within telemetry.drain_target_s; "
            "the sum over all workers, rounded up, is the number to run.",
            registry=registry,
        )
        self.device_memory_bytes = Gauge(
            "zimage_device_memory_bytes",
            "Device memory of this process, by kind: allocated, reserved.",
            ["kind"],
            registry=registry,
        )


class HealthCollector(Collector):
    """Exposes the worker's health as metrics, read at each scrape."""

    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ready, _ = self._health.ready()
        yield GaugeMetricFamily(
            "zimage_ready", "1 if the worker can serve; /readyz gives the reasons if not.", value=ready
        )
        up = GaugeMetricFamily(
            "zimage_dependency_up",
            "1 if the dependency (kafka, store, registry) answered its last request.",
            labels=["dependency"],
        )
        for name, is_up in self._health.dependencies().items():
            up.add_metric([name], is_up)
        yield up
