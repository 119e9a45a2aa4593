"""Progress on real services: what a worker says of requests, and that it serves on when nobody takes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.fleet.arena import Arena, client_config
from tests.fleet.workers import WorkerProcess, until
from tests.integration.test_health import samples
from tests.services import Kafka, KafkaAddress, MinioAddress
from zimage_stream import PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.reader import TopicReader

STEPS = 4


def image_request(prompt: str = "a picture", **fields: Any) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=64, height=64, steps=STEPS, **fields)


def events(arena: Arena) -> dict[str, list[Progress]]:
    """What the topic has of each request, in order."""
    found: dict[str, list[Progress]] = defaultdict(list)
    with TopicReader(arena.settings.kafka, arena.settings.topics.progress, uncommitted=True) as reader:
        reader.start()
        for record in reader.read_to_end():
            event = Codec().decode_progress(record.value)
            assert record.key == event.request_id.encode()
            found[event.request_id].append(event)
    return found


def stages(found: list[Progress]) -> list[str]:
    return [f"{event.stage} {event.step}/{event.steps}" for event in found]


def complaints(worker: WorkerProcess) -> list[str]:
    said = (line["message"] for line in worker.lines())
    return [line for line in said if line.startswith("no progress is published")]


def counts(worker: WorkerProcess) -> dict[str, float]:
    found = samples(worker).items()
    return {outcome: value for (name, outcome), value in found if name == "zimage_progress_events_total"}


class TestAWorker:
    def start(self, arena: Arena, **settings: str) -> WorkerProcess:
        return arena.fleet.start("slot-7", ZIMAGE_ENGINE__SIMULATED_MS="0", **settings).wait_ready()

    def test_says_when_requests_are_begun_and_generated(self, arena: Arena) -> None:
        worker = self.start(arena)
        requests = [image_request(f"{n}", tenant="studio", batch_id="b") for n in range(5)]
        arena.send(requests)
        arena.assert_exactly_once(arena.wait_answered(60))
        until(lambda: counts(worker).get("published") == 10, 30, "all is published")
        found = events(arena)
        expected = [f"STARTED 0/{STEPS}", f"GENERATED {STEPS}/{STEPS}"]
        assert {each: stages(found[each]) for each in found} == {
            request.request_id: expected for request in requests
        }
        places = {request_id: place for place, request_id in arena.accepted.items()}
        for request in requests:
            for event in found[request.request_id]:
                assert (event.tenant, event.batch_id, event.worker) == ("studio", "b", "slot-7")
                assert (event.source.partition, event.source.offset) == places[request.request_id]
        assert complaints(worker) == []

    def test_says_each_step_where_it_is_asked_to(self, arena: Arena) -> None:
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS="steps")
        (request_id,) = arena.send([image_request()])
        arena.wait_answered(60)
        until(lambda: counts(worker).get("published") == 2 + STEPS, 30, "all is published")
        steps = [f"STEP {step}/{STEPS}" for step in range(1, STEPS + 1)]
        expected = [f"STARTED 0/{STEPS}", *steps, f"GENERATED {STEPS}/{STEPS}"]
        assert stages(events(arena)[request_id]) == expected

    def test_says_nothing_where_that_is_off(self, arena: Arena) -> None:
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS="off")
        arena.send([image_request()])
        arena.wait_answered(60)
        worker.signal(15)
        assert worker.wait(60) == 0
        assert events(arena) == {}

    def test_says_that_an_attempt_follows_one_that_failed(self, arena: Arena) -> None:
        worker = self.start(arena, ZIMAGE_ENGINE__SIMULATED_FAULTS='{"broken": "raise"}')
        (request_id,) = arena.send([image_request("broken")])
        arena.wait_answered(60)
        until(lambda: counts(worker).get("published") == 5, 30, "all is published")
        attempt, again = f"STARTED 0/{STEPS}", f"RETRYING 0/{STEPS}"
        assert stages(events(arena)[request_id]) == [attempt, again, attempt, again, attempt]

    def test_publishes_the_last_of_it_before_it_ends(self, arena: Arena) -> None:
        worker = arena.fleet.start("slot-7", ZIMAGE_ENGINE__SIMULATED_MS="100000").wait_ready()
        (request_id,) = arena.send([image_request()])
        worker.wait_begun()
        worker.signal(15)
        assert worker.wait(60) == 0
        assert stages(events(arena)[request_id]) == [
            f"STARTED 0/{STEPS}",
            f"GENERATED {STEPS}/{STEPS}",
        ]

    def test_drops_what_its_queue_has_no_room_for(
        self, make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
    ) -> None:
        extra = {"queue.buffering.max.messages": "1", "session.timeout.ms": "6000"}
        arena = make_arena(kafka, minio, kafka={"extra": extra})
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS="steps")
        arena.send([image_request(f"{n}") for n in range(50)])
        arena.assert_exactly_once(arena.wait_answered(60))
        until(lambda: sum(counts(worker).values()) == 50 * (2 + STEPS), 30, "all is counted")
        assert counts(worker)["dropped"] > 50
        assert complaints(worker) == []

    def test_serves_on_without_the_topic_and_does_not_create_it(self, arena: Arena) -> None:
        admin = AdminClient(client_config(arena.settings.kafka))
        topic = arena.settings.topics.progress
        admin.delete_topics([topic])[topic].result(60)
        until(lambda: topic not in admin.list_topics(timeout=60).topics, 60, "the topic is gone")
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS="steps")
        arena.send([image_request(f"{n}") for n in range(20)])
        report = arena.wait_answered(60)
        arena.assert_exactly_once(report)
        assert report.statuses() == {"SUCCEEDED": 20}
        until(lambda: counts(worker).get("failed") == 20 * (2 + STEPS), 30, "all is counted")
        assert complaints(worker) == [f"no progress is published to {topic}: the topic does not exist"]
        assert worker.ready() == (True, [])
        assert topic not in admin.list_topics(timeout=60).topics


class GuardedKafka(Kafka):
    """A broker that allows everything for which there are no rules."""

    title = "Kafka with rules"

    def _properties(self) -> dict[str, str]:
        return super()._properties() | {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found": "true",
        }


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedKafka]:
    with GuardedKafka(tmp_path / "kafka") as service:
        yield service


def test_a_worker_whose_progress_is_refused_serves_on(
    make_arena: Callable[..., Arena], guarded: GuardedKafka, minio: MinioAddress
) -> None:
    arena = make_arena(guarded, minio)
    topic = arena.settings.topics.progress
    rules = [
        AclBinding(
            ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, allowed
        )
        for operation, allowed in (
            (AclOperation.WRITE, AclPermissionType.DENY),
            (AclOperation.READ, AclPermissionType.ALLOW),
        )
    ]
    admin = AdminClient(client_config(arena.settings.kafka))
    for made in admin.create_acls(rules).values():
        made.result(60)
    worker = arena.fleet.start(
        "worker", ZIMAGE_ENGINE__SIMULATED_MS="0", ZIMAGE_WORKER__PROGRESS="steps"
    ).wait_ready()
    for _ in range(2):
        arena.send([image_request(f"{n}") for n in range(20)])
        report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 40}
    until(lambda: counts(worker).get("failed") == 40 * (2 + STEPS), 30, "all is counted")
    (complaint,) = complaints(worker)
    assert "authorization failed" in complaint.lower()
    assert worker.ready() == (True, [])
    assert events(arena) == {}
