"""Generates ``docs/metrics.md`` from the metrics: ``python -m tools.render_metrics``."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, Metric

from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import HealthCollector, Metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

_HEAD = """# Metrics

The metrics that a worker serves at `/metrics`. This page is generated from
[`zimage_stream/telemetry/metrics.py`](../zimage_stream/telemetry/metrics.py) by
`python -m tools.render_metrics`. There are also `process_*` metrics: memory, CPU, file descriptors.

Times are in seconds, sizes in bytes. No label identifies a request; `tenant` has the 50 longest queues and
`(others)` if `telemetry.tenant_label` is on, and is empty if it is off.

| metric | kind | labels | |
|---|---|---|---|
"""


def rendered() -> str:
    """Return the text of the page."""
    registry, health = CollectorRegistry(), Health()
    health.up("kafka")
    metrics = Metrics(registry)
    labels = {metric._name: metric._labelnames for metric in vars(metrics).values()}
    registry.register(HealthCollector(health))
    rows = []
    for family in registry.collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        named = labels.get(family.name) or _labels_of(family)
        shown = ", ".join(f"`{name}`" for name in named)
        rows.append(f"| `{family.name}{suffix}` | {family.type} | {shown} | {family.documentation} |\n")
    return _HEAD + "".join(rows)


def _labels_of(family: Metric) -> list[str]:
    return sorted({name for sample in family.samples for name in sample.labels} - {"le"})


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
