from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import HealthCollector, Metrics

BOUNDED = {"code", "dependency", "kind", "outcome", "partition", "stage", "status", "tenant"}
"""Labels with few possible values, however long a worker runs and whoever uses it."""


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Metrics(registry)
    return registry


def test_every_metric_has_our_prefix_and_a_description(registry: CollectorRegistry) -> None:
    found = list(registry.collect())
    assert found
    for metric in found:
        assert re.fullmatch(r"zimage_[a-z_]+", metric.name)
        assert metric.documentation.endswith(".")


def test_no_label_has_unbounded_values() -> None:
    metrics = Metrics(CollectorRegistry())
    labels = {label for metric in vars(metrics).values() for label in metric._labelnames}
    assert labels <= BOUNDED


def test_health_is_read_at_each_scrape(registry: CollectorRegistry) -> None:
    health = Health()
    registry.register(HealthCollector(health))
    assert registry.get_sample_value("zimage_ready") == 0
    assert registry.get_sample_value("zimage_dependency_up", {"dependency": "store"}) is None
    health.set_started()
    health.up("store")
    assert registry.get_sample_value("zimage_ready") == 1
    assert registry.get_sample_value("zimage_dependency_up", {"dependency": "store"}) == 1
    health.down("store", "gone")
    assert registry.get_sample_value("zimage_ready") == 0
    assert registry.get_sample_value("zimage_dependency_up", {"dependency": "store"}) == 0
