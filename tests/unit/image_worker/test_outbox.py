"""What the outbox does with a job whose terminal event cannot be made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.checkpoint import Checkpoint, Ledger
from zimage_consumers.image_worker.jobs import Job, Resolution
from zimage_consumers.image_worker.outbox import Outbox
from zimage_consumers.image_worker.terminal import Identity, Outgoing
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Code
from zimage_stream.settings import TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics
from zimage_stream.telemetry.tracing import create_tracer


@dataclass
class Published:
    """A session that only notes what is published."""

    held: dict[int, Any]
    records: list[Outgoing] = field(default_factory=list)

    def publish(self, records: list[Outgoing], checkpoints: Mapping[int, Checkpoint]) -> None:
        self.records += records


def test_a_terminal_event_that_cannot_be_made_is_held_back_alone() -> None:
    health = Health()
    health.set_started()
    metrics, tracer = Metrics(CollectorRegistry()), create_tracer(False, "slot")
    withheld: list[Job] = []
    identity = Identity("m", "", "slot")
    outbox = Outbox(
        TopicSettings(), Codec(), identity, lambda job: True, withheld.append, health, metrics, tracer
    )
    good, bad = job(), job(batch_id=5)
    first = min(each.record.offset for each in (good, bad))
    session: Any = Published({0: SimpleNamespace(ledger=Ledger(Checkpoint(first)))})
    for each in (good, bad):
        session.held[0].ledger.take(each.record.offset)
        outbox.add(Resolution(each, code=Code.EXPIRED))

    assert outbox.publish(session) == []
    assert outbox.publish(session) == [good]
    assert withheld == [bad]
    assert len(session.records) == 1
    ready, reasons = health.ready()
    assert not ready
    assert any(f"offset {bad.record.offset} in partition 0 cannot be published" in why for why in reasons)
