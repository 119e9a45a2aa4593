"""One worker on real services: whatever is sent, each record gets exactly one terminal event."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from PIL import Image

from tests.fleet.arena import Arena, client_config
from tests.fleet.checker import position_of
from tests.fleet.workers import WorkerProcess, until
from tests.integration.test_health import samples
from tests.services import KafkaAddress, MinioAddress, RegistryAddress, SecureKafka
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.events.codec import Codec
from zimage_stream.events.schemas import IMAGE_RESULT, PROMPT_REQUEST, current
from zimage_stream.imaging import read_text
from zimage_stream.settings import environment_of

SIDE = 64


def image_request(prompt: str = "a picture", **fields: Any) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=SIDE, height=SIDE, **fields)


def publish(
    arena: Arena, value: bytes | None, headers: list[tuple[str, str | bytes | None]] | None = None
) -> None:
    """Send a record to the requests topic without using the client."""
    kafka = client_config(arena.settings.kafka)
    producer = Producer(kafka | {"message.max.bytes": 4 << 20})

    def delivered(error: object, message: Any) -> None:
        assert error is None
        arena.accepted[position_of(kafka, message, arena.accepted)] = f"record {len(arena.accepted)}"

    producer.produce(
        arena.settings.topics.requests, value, key=b"\xff\x00", headers=headers or [], on_delivery=delivered
    )
    assert producer.flush(120) == 0


def publish_request(arena: Arena, request: PromptRequest) -> None:
    """Send a request without the client's checks."""
    publish(arena, Codec().encode_request(request, arena.settings.topics.requests))


@pytest.fixture
def worker(arena: Arena) -> WorkerProcess:
    return arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()


class TestASuccessfulRequest:
    def test_is_answered_with_the_image_it_requested(self, arena: Arena, worker: WorkerProcess) -> None:
        request = image_request(
            "一只红色的狐狸", tenant="studio", seed=7, batch_id="b1", attributes={"sku": "A-1"}
        )
        with PromptClient(arena.settings) as client:
            client.submit(request, headers={"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"})
            result = client.wait(request.request_id, timeout=120)
        assert (result.tenant, result.batch_id, result.attributes) == ("studio", "b1", {"sku": "A-1"})
        assert result.attempts == 1
        assert result.worker == "worker"
        image = result.image
        assert image is not None
        assert image.key == f"studio/{request.request_id}.png"
        assert (image.width, image.height, image.seed, image.steps) == (SIDE, SIDE, 7, 8)
        timing = result.timing
        stages = (timing.queued_ms, timing.generate_ms, timing.encode_ms, timing.upload_ms, timing.total_ms)
        assert all(stage is not None and stage >= 0 for stage in stages)
        data = arena.store.get_object(image.bucket, image.key).read()
        assert Image.open(BytesIO(data)).size == (SIDE, SIDE)
        assert read_text(data)["prompt"] == "一只红色的狐狸"

    def test_carries_its_trace_to_the_result(self, arena: Arena, worker: WorkerProcess) -> None:
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        with PromptClient(arena.settings) as client:
            client.wait(client.submit(image_request(), headers={"traceparent": trace}), timeout=120)
        topic = arena.settings.topics.results
        headers = [dict(message.headers() or []) for message in read(arena, topic)]
        assert [sent["traceparent"] for sent in headers] == [trace.encode()]
        assert headers[0]["ce_type"] == b"zimage.ImageResult.v1"

    def test_is_answered_in_other_formats(self, arena: Arena, worker: WorkerProcess) -> None:
        with PromptClient(arena.settings) as client:
            for name, content_type in (("webp", "image/webp"), ("jpeg", "image/jpeg")):
                result = client.wait(client.submit(image_request(format=name)), timeout=120)
                assert result.image is not None
                assert result.image.content_type == content_type


class TestASecondRequestWithTheSameId:
    def test_with_the_same_parameters_costs_no_generation(self, arena: Arena, worker: WorkerProcess) -> None:
        request = image_request()
        with PromptClient(arena.settings) as client:
            first = client.wait(client.submit(request), timeout=120)
            second = client.wait(client.submit(request), timeout=120)
        assert second.source != first.source
        assert second.image == first.image
        assert arena.fleet.generated()[request.request_id] == 1

    def test_with_other_parameters_is_a_conflict(self, arena: Arena, worker: WorkerProcess) -> None:
        request = image_request()
        arena.send([request])
        arena.wait_answered(30)
        arena.send([replace(request, prompt="something else")])
        report = arena.wait_answered(30)
        arena.assert_exactly_once(report)
        codes = sorted(str(r["error"] and r["error"]["code"]) for (r,) in report.results.values())
        assert codes == ["ID_CONFLICT", "None"]

    def test_in_another_format_is_a_conflict_too(self, arena: Arena, worker: WorkerProcess) -> None:
        request = image_request()
        with PromptClient(arena.settings) as client:
            others = [
                replace(request, format="webp"),
                replace(request, format="jpeg", prompt="something else"),
            ]
            results = [client.wait(client.submit(each), timeout=120) for each in (request, *others)]
        codes = [result.error and result.error.code for result in results]
        assert codes == [None, "ID_CONFLICT", "ID_CONFLICT"]
        error = results[1].error
        assert error is not None
        assert f"{request.request_id}.png" in error.message
        kept = arena.store.list_objects(bucket_name=arena.settings.store.bucket, recursive=True)
        assert [item.object_name for item in kept] == [f"default/{request.request_id}.png"]
        assert arena.fleet.generated()[request.request_id] == 1


class TestARequestThatCannotBeServed:
    def test_because_it_expired_has_no_dead_letter(self, arena: Arena, worker: WorkerProcess) -> None:
        gone = image_request(expires_at=datetime.now(UTC) - timedelta(seconds=1))
        arena.send([gone, image_request()])
        report = arena.wait_answered(30)
        arena.assert_exactly_once(report)
        assert report.by_request()[gone.request_id]["status"] == "EXPIRED"
        assert arena.fleet.generated()[gone.request_id] == 0


class TestAnEngineThatFails:
    def start(self, arena: Arena, **faults: str) -> WorkerProcess:
        return arena.fleet.start(
            "worker", ZIMAGE_ENGINE__SIMULATED_MS="0", ZIMAGE_ENGINE__SIMULATED_FAULTS=json.dumps(faults)
        ).wait_ready()

    def test_for_one_prompt_ends_that_request_after_its_attempts(self, arena: Arena) -> None:
        self.start(arena, broken="raise")
        bad = image_request("broken")
        arena.send([image_request("before"), bad, *(image_request(f"after {i}") for i in range(10))])
        report = arena.wait_answered(40)
        arena.assert_exactly_once(report)
        failed = report.by_request()[bad.request_id]
        assert (failed["error"]["code"], failed["attempts"]) == ("GENERATION_FAILED", 3)
        assert report.statuses() == {"SUCCEEDED": 11, "FAILED": 1}

    def test_for_lack_of_memory_gets_smaller_batches(self, arena: Arena) -> None:
        worker = self.start(arena, large="oom:2")
        arena.send([image_request(f"large {i}") for i in range(40)])
        report = arena.wait_answered(40)
        arena.assert_exactly_once(report)
        assert report.statuses() == {"SUCCEEDED": 40}
        # 8 led to 4, and 4 to 2: everything after that fitted at once.
        assert samples(worker)["zimage_out_of_memory_total", ""] <= 2
        assert {result["attempts"] for result in report.by_request().values()} == {1}

    def test_for_lack_of_memory_even_alone_ends_only_that_request(self, arena: Arena) -> None:
        self.start(arena, huge="oom:0")
        huge = image_request("huge")
        arena.send([huge, *(image_request(f"small {i}") for i in range(8))])
        report = arena.wait_answered(40)
        arena.assert_exactly_once(report)
        assert report.by_request()[huge.request_id]["error"]["code"] == "OUT_OF_MEMORY"
        assert report.statuses() == {"SUCCEEDED": 8, "FAILED": 1}

    def test_with_a_lost_context_ends_the_process_without_ending_a_request_at_once(
        self, arena: Arena
    ) -> None:
        worker = self.start(arena, cursed="lost")
        arena.send([image_request("cursed")])
        assert worker.wait(30) == 71
        assert arena.report().results == {}

    def test_that_hangs_ends_the_process_without_ending_a_request_at_once(self, arena: Arena) -> None:
        hung = arena.fleet.start(
            "worker",
            ZIMAGE_ENGINE__SIMULATED_MS="0",
            ZIMAGE_ENGINE__SIMULATED_FAULTS=json.dumps({"endless": "hang"}),
            ZIMAGE_ENGINE__HANG_TIMEOUT_S="1",
        ).wait_ready()
        arena.send([image_request("endless"), *(image_request(f"{i}") for i in range(5))])
        assert hung.wait(30) == 73
        arena.fleet.start("next", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
        report = arena.wait_answered(40)
        arena.assert_exactly_once(report)
        assert report.statuses() == {"SUCCEEDED": 6}


def test_a_sick_engine_gives_its_requests_back(arena: Arena) -> None:
    # The known-good image fails too, so the device is at fault.
    faults = json.dumps({"": "raise"})
    sick = arena.fleet.start("sick", ZIMAGE_ENGINE__SIMULATED_FAULTS=faults).wait_ready()
    arena.send([image_request(f"{i}") for i in range(20)])
    assert sick.wait(30) == 70
    assert arena.report().results == {}
    arena.fleet.start("healthy", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    report = arena.wait_answered(30)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 20}
    assert {result["attempts"] for result in report.by_request().values()} == {1}


def flood(arena: Arena, count: int) -> None:
    """Send this many records of an unknown schema, from one producer, into one partition."""
    kafka = client_config(arena.settings.kafka)
    producer = Producer(kafka)

    def delivered(error: object, message: Any) -> None:
        assert error is None
        arena.accepted[position_of(kafka, message, arena.accepted)] = "flood"

    for number in range(count):
        value = b"\x00\x00\x00\x00\x07 of a registry that this worker does not know, %d" % number
        producer.produce(arena.settings.topics.requests, value, key=b"one producer", on_delivery=delivered)
        producer.poll(0)
    assert producer.flush(120) == 0


def release(arena: Arena) -> None:
    """Run the command that an operator runs, on any machine."""
    words = ["dead-letters", "release", "--code", "unknown_schema"]
    done = subprocess.run(
        [sys.executable, "-m", "zimage_stream", *words],
        env={**os.environ, **environment_of(arena.settings)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


class TestRequestsThatMayFailThroughTheDeployment:
    def test_are_held_back_if_nothing_succeeds_until_an_operator_releases_them(self, arena: Arena) -> None:
        worker = arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
        flood(arena, 300)

        def held() -> bool:
            return any(
                reason.startswith("250 requests are held back") and "UNKNOWN_SCHEMA" in reason
                for reason in worker.ready()[1]
            )

        until(held, 60, "all but a few are held back")
        until(lambda: len(arena.report().dead) == 50, 60, "the few are dead letters")
        release(arena)
        report = arena.wait_answered(60)
        assert len(report.dead) == 300
        assert report.duplicates == []
        worker.wait_ready()

    def test_do_not_stop_the_requests_of_other_producers(self, arena: Arena) -> None:
        flood(arena, 1_500)
        worker = arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
        until(
            lambda: any("held back" in reason for reason in worker.ready()[1]), 60, "the flood is held back"
        )
        arena.send([image_request(f"{i}", tenant=f"tenant-{i}") for i in range(40)])
        # Others succeed, so the deployment is not at fault, and the flood ends too.
        report = arena.wait_answered(60)
        assert report.statuses() == {"SUCCEEDED": 40}
        assert len(report.dead) == 1_500
        assert report.duplicates == []
        worker.wait_ready()


def test_at_least_once_also_answers_every_request(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    arena = make_arena(kafka, minio, worker={"guarantee": "at_least_once"})
    arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    arena.send([image_request(f"{i}") for i in range(100)])
    publish(arena, b"poison")
    report = arena.wait_answered(30)
    assert report.statuses() == {"SUCCEEDED": 100}
    assert report.duplicates == []
    assert len(report.dead) == 1


def test_with_a_schema_registry(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, registry: RegistryAddress
) -> None:
    arena = make_arena(kafka, minio, registry={"url": registry.url, "auto_register": True})
    arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    with PromptClient(arena.settings) as client:
        result = client.wait(client.submit(image_request()), timeout=120)
    assert result.succeeded
    (record,) = read(arena, arena.settings.topics.results)
    assert record.value()[0] == 0


def test_without_a_registered_results_schema_a_worker_waits_and_charges_no_request(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, registry: RegistryAddress
) -> None:
    arena = make_arena(kafka, minio, registry={"url": registry.url})
    topics = arena.settings.topics
    with SchemaRegistryClient({"url": registry.url, "timeout": 10}) as schemas:

        def register(name: str, topic: str) -> None:
            schemas.register_schema(f"{topic}-value", RegistrySchema(current(name).text, "AVRO"))

        register(PROMPT_REQUEST, topics.requests)
        worker = arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0")
        sent = arena.send([image_request(f"{i}") for i in range(10)])
        missing = f"not registered under subject {topics.results}-value"
        until(
            lambda: any(missing in reason for reason in worker.ready()[1]), 30, "/readyz says what is missing"
        )
        assert worker.exit_code() is None
        register(IMAGE_RESULT, topics.results)
        worker.wait_ready()
    with PromptClient(arena.settings) as client:
        results = list(client.results(sent, timeout=120))
    assert {(result.succeeded, result.attempts) for result in results} == {(True, 1)}


def test_client_and_worker_over_sasl_ssl(
    make_arena: Callable[..., Arena], secure_kafka: SecureKafka, minio: MinioAddress
) -> None:
    arena = make_arena(secure_kafka, minio)
    assert arena.settings.kafka.security_protocol == "SASL_SSL"
    arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
    arena.send([image_request(f"{i}") for i in range(20)])
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 20}


def test_a_missing_bucket_is_reported_at_start(arena: Arena, tmp_path: Path) -> None:
    worker = arena.fleet.start("worker", ZIMAGE_STORE__BUCKET="nowhere")
    assert worker.wait(30) == 1
    assert "there is no bucket 'nowhere'" in worker.log.read_text()


def read(arena: Arena, topic: str) -> Iterator[Any]:
    """All records that are in a topic now."""
    consumer = Consumer(
        client_config(arena.settings.kafka)
        | {"group.id": "test", "enable.partition.eof": "true", "isolation.level": "read_committed"}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=120).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
        ended = 0
        while ended < len(partitions):
            message = consumer.poll(120)
            assert message is not None, "the broker does not answer"
            if message.error() is not None:
                ended += 1
            else:
                yield message
    finally:
        consumer.close()
