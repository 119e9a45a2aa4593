"""A worker's logs, health and metrics on real services."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from tests.fleet.arena import Arena, client_config
from tests.fleet.checker import check
from tests.fleet.workers import WorkerProcess, until
from tests.services.addresses import KafkaAddress, MinioAddress
from tests.services.native.minio import Minio
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.events.codec import Codec

SECRET = "a wish that nobody else may read"


@pytest.fixture
def worker(arena: Arena) -> WorkerProcess:
    return arena.fleet.start("slot-7", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()


def samples(worker: WorkerProcess) -> dict[tuple[str, str], float]:
    """Values of the worker's metrics by name and label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{worker.port()}/metrics", timeout=120) as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }


def status_of(worker: WorkerProcess, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port()}{path}", timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal)


def serve_some(arena: Arena) -> tuple[list[PromptRequest], PromptRequest]:
    """Three requests that are served, one of them sent twice, and one that is refused."""
    good = [PromptRequest(prompt=f"{SECRET} {n}", width=64, height=64, tenant="studio") for n in range(3)]
    bad = PromptRequest(prompt=f"{SECRET}\x07", width=64, height=64)
    with PromptClient(arena.settings) as client:
        for request in good:
            client.wait(client.submit(request), timeout=120)
        client.wait(client.submit(good[0]), timeout=120)
        # The client would refuse it.
        producer = Producer(client_config(arena.settings.kafka))
        topic = arena.settings.topics.requests
        producer.produce(topic, Codec().encode_request(bad, topic))
        assert producer.flush(120) == 0
        [result] = client.results([bad.request_id], timeout=120)
        assert result.error is not None
    return good, bad


def test_metrics_count_the_requests_served(arena: Arena, worker: WorkerProcess) -> None:
    serve_some(arena)
    until(lambda: samples(worker)["zimage_results_total", "FAILED"] == 1, 10, "all are counted")

    def settled() -> bool:
        # Gauges are sampled once a second, so a sample may be older than the last resolved request.
        found = samples(worker)
        return found["zimage_partitions", ""] == 12 and found["zimage_window_requests", ""] == 0

    until(settled, 10, "the gauges show an idle worker")
    found = samples(worker)
    assert found["zimage_results_total", "SUCCEEDED"] == 4
    assert found["zimage_requests_taken_total", ""] == 5
    assert found["zimage_dead_letters_total", "INVALID_REQUEST"] == 1
    assert found["zimage_generate_seconds_count", ""] == 3
    assert found["zimage_encode_seconds_count", ""] == 3
    assert found["zimage_upload_seconds_count", ""] == 3
    assert found["zimage_batch_size_sum", ""] == 3
    assert found["zimage_store_reused_total", ""] == 1
    assert found["zimage_engine_busy_seconds_total", ""] > 0
    assert found["zimage_transactions_total", "committed"] >= 4
    assert found["zimage_rebalances_total", "assigned"] >= 1
    assert found["zimage_dependency_up", "kafka"] == found["zimage_dependency_up", "store"] == 1
    assert found["zimage_ready", ""] == 1


def test_log_lines_about_a_request_name_its_id_and_never_its_prompt(
    arena: Arena, worker: WorkerProcess
) -> None:
    good, bad = serve_some(arena)
    sent = {request.request_id: request.tenant for request in [*good, bad]}
    outcomes = ("succeeded", "dead letter")

    def about_outcomes() -> list[dict[str, Any]]:
        return [line for line in worker.lines() if line["message"].startswith(outcomes)]

    lines = until(lambda: len(about_outcomes()) == 5 and about_outcomes(), 10, "every outcome is logged")
    places = {(line["partition"], line["offset"]) for line in lines}
    assert len(places) == 5
    for line in lines:
        assert line["slot"] == "slot-7"
        assert line["tenant"] == sent[line["request_id"]]
        assert isinstance(line["attempt"], int)
        assert {"time", "level", "logger"} < line.keys()
    assert {line["request_id"] for line in lines} == sent.keys()
    log = worker.log.read_text()
    assert SECRET not in log
    assert "INVALID_REQUEST" in log
    assert len(log.splitlines()) == len(worker.lines()), "a line that is not JSON"


def test_a_worker_waiting_for_its_broker_is_alive_but_not_ready(arena: Arena) -> None:
    worker = arena.fleet.start(
        "waiting", ZIMAGE_ENGINE__SIMULATED_MS="0", ZIMAGE_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:1"
    )
    until(worker.port, 30, "its health endpoint responds")
    reasons = until(lambda: [r for r in worker.ready()[1] if "kafka" in r], 60, "/readyz names Kafka")
    assert "down for" in reasons[0]
    status, body = status_of(worker, "/readyz")
    assert (status, body["ready"]) == (503, False)
    assert status_of(worker, "/healthz") == (200, {"alive": True})


def test_no_result_is_published_before_its_image_is_stored(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, own_minio: Minio
) -> None:
    arena = make_arena(kafka, own_minio)
    faults = {"ZIMAGE_ENGINE__SIMULATED_FAULTS": '{"slow": "slow:6"}'}
    worker = arena.fleet.start("worker", **faults).wait_ready()
    arena.send([PromptRequest(prompt="slow", width=64, height=64)])
    # It was looked up and is being generated.
    worker.wait_begun()
    time.sleep(0.5)
    own_minio.kill()
    until(lambda: any("store" in reason for reason in worker.ready()[1]), 30, "/readyz names the store")
    until(arena.fleet.generated, 60, "the image is generated")
    time.sleep(1)
    topics = arena.settings.topics
    assert check(client_config(arena.settings.kafka), topics.results, topics.dead_letters, None).results == {}
    own_minio.start()
    report = arena.wait_answered(40)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 1}


def test_a_worker_that_starts_before_its_store_waits_for_it(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, own_minio: Minio
) -> None:
    arena = make_arena(kafka, own_minio)
    own_minio.kill()
    worker = arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0")
    until(lambda: any("store has been down" in r for r in worker.ready()[1]), 60, "/readyz names the store")
    assert worker.exit_code() is None
    own_minio.start()
    worker.wait_ready()


def test_reports_about_a_partition_move_with_it_to_its_next_owner(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    arena = make_arena(kafka, minio, partitions=2)
    config, topic = client_config(arena.settings.kafka), arena.settings.topics.requests
    places = [TopicPartition(topic, number, 0) for number in (0, 1)]
    producer = Producer(config)
    for place in places:
        producer.produce(topic, b"deleted before it is served", partition=place.partition)
    assert producer.flush(120) == 0
    # The group has committed an offset, and retention has passed it.
    group = Consumer(config | {"group.id": arena.settings.worker.group_id})
    group.commit(offsets=places, asynchronous=False)
    group.close()
    admin = AdminClient({**config})
    deleted = admin.delete_records([TopicPartition(topic, number, 1) for number in (0, 1)])
    for answer in deleted.values():
        answer.result(120)

    def stopped(worker: WorkerProcess) -> list[str]:
        return [reason.split(" is stopped")[0] for reason in worker.ready()[1] if " is stopped" in reason]

    first = arena.fleet.start("first", ZIMAGE_ENGINE__SIMULATED_MS="0")
    until(lambda: len(stopped(first)) == 2, 60, "it names both")
    second = arena.fleet.start("second", ZIMAGE_ENGINE__SIMULATED_MS="0")
    until(lambda: len(stopped(second)) == 1, 60, "the other names the one that it was given")
    until(lambda: len(stopped(first)) == 1, 60, "it names the one that it has left")
    assert {*stopped(first), *stopped(second)} == {"partition 0", "partition 1"}
