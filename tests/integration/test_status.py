"""``zimage status`` and ``zimage topics check`` against a real broker and checkpoints of a real group."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.commands import Run
from tests.integration.answers import Answers
from tests.unit.events.registries import AnyRegistry
from zimage_stream import PromptClient, PromptRequest, Settings
from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import producer_config, reader_config, transactional_config
from zimage_stream.settings import environment_of


def submit(settings: Settings, *ids: str, partition: int, age: timedelta = timedelta()) -> None:
    """Requests in one partition, from offset 0 on."""
    producer = Producer(producer_config(settings.kafka))
    for request_id in ids:
        value = Codec().encode_request(PromptRequest(prompt="fail", request_id=request_id), "t")
        at = round((time.time() - age.total_seconds()) * 1000)
        producer.produce(
            settings.topics.requests, key=request_id, value=value, partition=partition, timestamp=at
        )
    assert producer.flush(120) == 0


def commit(settings: Settings, partition: int, checkpoint: Checkpoint) -> None:
    consumer = Consumer({**reader_config(settings.kafka), "group.id": settings.worker.group_id})
    at = TopicPartition(settings.topics.requests, partition, checkpoint.base, checkpoint.encode())
    consumer.commit(offsets=[at], asynchronous=False)
    consumer.close()


def overview(zimage: Run) -> dict[str, Any]:
    done = zimage("status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_unresolved_requests_are_counted_from_the_checkpoints(zimage: Run, settings: Settings) -> None:
    assert overview(zimage)["unresolved"] == 0
    submit(settings, *"abcdef", partition=1)
    submit(settings, "x", partition=2)
    checkpoint = Checkpoint(1, resolved=0b1010, marks={1: Mark(open=True), 3: Mark(2, suspect=True)})
    commit(settings, 1, checkpoint)
    found = overview(zimage)
    assert found["unresolved"] == 4
    one = found["partitions"][1]
    assert (one["base"], one["end"], one["unresolved"], one["started"], one["suspects"]) == (1, 6, 3, 1, 1)
    assert (found["workers"], one["worker"], found["drained_in_s"]) == ([], None, None)

    people = zimage("status").stdout
    assert "unresolved  4, the oldest" in people
    assert "unknown: no results" in people
    assert people.count("no worker") == 2

    said = {
        name: json.loads(zimage("status", name, "--json").stdout or "{}") for name in ("b", "d", "f", "x")
    }
    assert [each["phase"] for each in said.values()] == ["running", "suspect", "waiting", "waiting"]
    assert [each["ahead"] for each in said.values()] == [0, 1, 2, 0]
    assert said["d"]["attempts"] == 2
    line = zimage("status", "d").stdout
    assert "a worker died while running it" in line
    assert "owned by no worker" in line
    # The checkpoint counts it as resolved, but its result is missing.
    gone = zimage("status", "c")
    assert (gone.returncode, gone.stdout) == (1, "")


def test_a_request_that_is_answered_shows_its_result(zimage: Run, settings: Settings) -> None:
    with Answers(settings), PromptClient(settings) as client:
        client.submit(PromptRequest(prompt="fail", request_id="r", tenant="acme"))
        client.wait("r", 30)
    done = zimage("status", "r")
    assert done.returncode == 0
    assert done.stdout.startswith("FAILED    r  GENERATION_FAILED")
    assert zimage("status", "r", "--tenant", "other").returncode == 1
    assert overview(zimage)["results"] == {"FAILED": 1}
    assert zimage("status", "--tenant", "acme").returncode == 2


def test_transaction_markers_do_not_count_as_requests(zimage: Run, settings: Settings) -> None:
    producer = Producer({**producer_config(settings.kafka), "transactional.id": settings.topics.requests})
    producer.init_transactions(120)
    producer.begin_transaction()
    producer.produce(settings.topics.requests, value=b"x", partition=0)
    producer.commit_transaction(120)
    assert overview(zimage)["unresolved"] == 2  # the record and its marker
    commit(settings, 0, Checkpoint(1))
    assert overview(zimage)["unresolved"] == 0


def test_requests_that_retention_is_about_to_delete_are_found(zimage: Run, settings: Settings) -> None:
    submit(settings, "a", partition=0, age=timedelta(days=3))
    assert zimage("topics", "check", "--partitions", "4").returncode == 0
    submit(settings, "b", partition=1, age=timedelta(days=5))
    done = zimage("topics", "check", "--partitions", "4")
    assert done.returncode == 1
    assert "its oldest unresolved request is 120.0 h old" in done.stdout


def test_a_partition_that_lost_requests_is_reported(zimage: Run, settings: Settings) -> None:
    submit(settings, *"abc", partition=0)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    for answer in admin.delete_records([TopicPartition(settings.topics.requests, 0, 2)]).values():
        answer.result(120)
    commit(settings, 0, Checkpoint(0, resolved=0b10))
    assert "LOST        partition 0: 1 requests were deleted" in zimage("status").stdout


def open_transaction(
    settings: Settings, *ids: str, partition: int, source: str = "/catalogue/importer"
) -> Producer:
    """A producer that has sent these requests in a transaction and has not ended it."""
    name = f"{settings.topics.requests}-{partition}"
    producer = Producer({**producer_config(settings.kafka), "transactional.id": name})
    producer.init_transactions(120)
    producer.begin_transaction()
    for request_id in ids:
        request = PromptRequest(prompt="fail", request_id=request_id)
        headers: list[tuple[str, str | bytes | None]] = [("ce_source", source.encode())]
        value = Codec().encode_request(request, "t")
        producer.produce(
            settings.topics.requests, key=request_id, value=value, partition=partition, headers=headers
        )
    assert producer.flush(120) == 0
    return producer


def test_requests_behind_an_open_transaction_are_reported_with_its_owner(
    zimage: Run, settings: Settings
) -> None:
    submit(settings, "a", partition=1)
    upstream = open_transaction(settings, "t", partition=1)
    submit(settings, "b", "c", partition=1)
    topic = settings.topics.requests

    found = overview(zimage)
    assert (found["unresolved"], found["behind_transactions"]) == (1, 3)
    one = found["partitions"][1]
    assert (one["end"], one["high"]) == (1, 4)
    assert (one["transaction"]["offset"], one["transaction"]["waiting"]) == (1, 3)
    assert one["transaction"]["source"] == "/catalogue/importer"
    assert datetime.fromisoformat(one["transaction"]["since"]) <= datetime.now(UTC)
    people = zimage("status").stdout
    assert "partition 1: 3 records are waiting behind a transaction" in people
    assert "/catalogue/importer" in people
    assert f"abort --topic {topic} --partition 1 --start-offset 1" in people
    assert "is waiting behind a producer's open transaction" in zimage("status", "c").stdout

    upstream.abort_transaction(120)
    found = overview(zimage)
    assert (found["behind_transactions"], found["partitions"][1]["transaction"]) == (0, None)


def test_an_overlong_transactional_id_is_shortened(zimage: Run, settings: Settings) -> None:
    name = "x" * (1 << 20)
    upstream = open_transaction(settings, "t", partition=1, source=name)
    assert overview(zimage)["partitions"][1]["transaction"]["source"] == name
    people = zimage("status").stdout
    assert f"({len(name)} characters)" in people
    assert len(people) < 10_000
    upstream.abort_transaction(120)


def test_a_worker_that_died_in_the_middle_of_a_commit_does_not_hold_up_the_answer(
    zimage: Run, settings: Settings
) -> None:
    submit(settings, "a", partition=0)
    commit(settings, 0, Checkpoint(0))
    dead = Producer(transactional_config(settings.kafka, settings.topics.requests))
    dead.init_transactions(120)
    dead.begin_transaction()
    tool = Consumer({**reader_config(settings.kafka), "group.id": settings.worker.group_id})
    offsets = [TopicPartition(settings.topics.requests, 0, 1)]
    dead.send_offsets_to_transaction(offsets, tool.consumer_group_metadata(), 30)
    tool.close()
    assert overview(zimage)["partitions"][0]["base"] == 0
    dead.abort_transaction(120)


def test_a_group_offset_past_the_end_of_the_log_is_reported(zimage: Run, settings: Settings) -> None:
    # As after the topic was deleted and created again under running workers.
    submit(settings, *"ab", partition=2)
    commit(settings, 2, Checkpoint(50))
    people = zimage("status").stdout
    assert "PAST END    partition 2: the group's offset is 50, and the log ends at 2" in people


def test_a_record_whose_schema_is_unavailable_does_not_hide_the_others(
    settings: Settings,
) -> None:
    with Answers(settings), PromptClient(settings) as client:
        client.submit(PromptRequest(prompt="fail", request_id="r"))
        client.wait("r", 30)
    with AnyRegistry() as registry:
        registry.fail(7)
        producer = Producer(producer_config(settings.kafka))
        for topic in (settings.topics.results, settings.topics.requests):
            producer.produce(topic, value=b"\x00\x00\x00\x00\x07r", partition=0)
        assert producer.flush(120) == 0
        words = [sys.executable, "-m", "zimage_stream"]
        env = environment_of(settings) | {"ZIMAGE_REGISTRY__URL": registry.url}
        for command in (["status", "--json"], ["status", "r"], ["results", "--json"]):
            done = subprocess.run([*words, *command], env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout
