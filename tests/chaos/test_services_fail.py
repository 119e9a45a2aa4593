"""The store and the broker go away in mid-run: no request pays for it."""

from __future__ import annotations

import time
from typing import Any

from tests.chaos.test_workers_die import pictures
from tests.fleet.arena import Arena
from tests.fleet.workers import until

OUTAGE_S = 20.0


def test_store_down_for_20_s_and_broker_restarted(own_arena: Arena, own_kafka: Any, own_minio: Any) -> None:
    worker = own_arena.fleet.start("only").wait_ready()
    own_arena.send(pictures(800))
    own_arena.wait_answered(60, share=0.1)

    own_minio.kill()
    stopped = time.monotonic()
    reasons = until(lambda: [r for r in worker.ready()[1] if "store" in r], 30, "/readyz names the store")
    assert "store has been down for" in reasons[0]
    time.sleep(max(0.0, OUTAGE_S - (time.monotonic() - stopped)))
    assert worker.exit_code() is None
    own_minio.start()
    until(lambda: worker.ready()[0], 30, "ready again after the store's outage")
    own_arena.wait_answered(60, share=0.4)

    own_kafka.kill()
    reasons = until(lambda: [r for r in worker.ready()[1] if "kafka" in r], 60, "/readyz names Kafka")
    assert "kafka has been down for" in reasons[0]
    own_kafka.start()
    until(lambda: worker.ready()[0], 60, "ready again after the broker's restart")

    report = own_arena.wait_answered(120)
    own_arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 800}
    assert report.dead == {}
    assert worker.exit_code() is None
