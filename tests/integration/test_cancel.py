"""``zimage cancel`` on a real broker. The tests answer for the worker, which does not read cancellations."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.commands import DEADLINE_S, Run, Start
from tests.fleet.workers import until
from tests.integration.answers import ResultWriter, failed
from tests.integration.test_status import commit, open_transaction
from zimage_stream import Failure, ImageResult, PromptClient, PromptRequest, Settings, Source, Status
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import producer_config
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.topics import make_topics, required_topics
from zimage_stream.settings import environment_of

TIMEOUT_S = 120.0


@pytest.fixture
def client(settings: Settings) -> Iterator[PromptClient]:
    with PromptClient(settings) as client:
        yield client


@pytest.fixture
def writer(settings: Settings) -> ResultWriter:
    return ResultWriter(settings)


def submit(client: PromptClient, *ids: str, **fields: Any) -> list[tuple[PromptRequest, Source]]:
    requests = [PromptRequest(prompt="a", request_id=each, **fields) for each in ids]
    return [(each, client.submit_nowait(each).result(TIMEOUT_S)) for each in requests]


def cancelled(request: PromptRequest, source: Source) -> ImageResult:
    error = Failure(code="CANCELLED", message="cancelled: changed my mind", retriable=True)
    return replace(failed(request, source), status=Status.CANCELLED, error=error)


def sent(settings: Settings) -> list[Cancellation]:
    """All cancellations on the topic."""
    with TopicReader(settings.kafka, settings.topics.cancellations) as reader:
        reader.start()
        found = []
        for record in reader.read_to_end():
            cancellation = Codec().decode_cancellation(record.value)
            assert record.partition == cancellation.source.partition
            assert record.key == cancellation.request_id.encode()
            assert dict(record.headers)["ce_source"] == b"/zimage/cli"
            found.append(cancellation)
        return found


def outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, tuple[str, str | None]]:
    """Outcome and status by id, from ``--json``."""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {each["request_id"]: (each["outcome"], each["status"]) for each in lines}
    assert len(found) == len(lines), done.stdout
    return found


def test_each_id_is_told_what_became_of_it(
    zimage: Run, settings: Settings, client: PromptClient, writer: ResultWriter
) -> None:
    (ended,) = submit(client, "ended")
    ((_, place),) = submit(client, "waits", tenant="shop")
    writer.write([failed(*ended)])
    commit(settings, ended[1].partition, Checkpoint(ended[1].offset + 1))

    done = zimage("cancel", "waits", "ended", "nosuch", "waits", "--timeout", "0")
    assert (done.returncode, done.stderr) == (1, "")
    assert sorted(done.stdout.splitlines()) == [
        "ended: ended before as FAILED",
        "nosuch: not found",
        "waits: asked, not ended yet",
    ]
    (cancellation,) = sent(settings)
    assert (cancellation.request_id, cancellation.tenant, cancellation.source) == ("waits", "shop", place)
    assert cancellation.reason is None


def test_it_waits_for_the_results(
    start: Start, settings: Settings, client: PromptClient, writer: ResultWriter
) -> None:
    quick, slow = submit(client, "quick", "slow")
    words = ("--reason", "changed my mind", "--json", "--timeout", str(TIMEOUT_S))
    process = start("cancel", "quick", "slow", *words)
    until(lambda: len(sent(settings)) == 2, TIMEOUT_S, "both cancellations are sent")
    assert {each.reason for each in sent(settings)} == {"changed my mind"}
    # As under at_least_once, a result may come twice.
    writer.write([cancelled(*quick), cancelled(*quick), failed(*slow)])
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    done = subprocess.CompletedProcess((), 0, out, err)
    assert outcomes(done) == {"quick": ("cancelled", "CANCELLED"), "slow": ("ended_before", "FAILED")}


def test_a_batch_is_cancelled_as_a_whole(
    zimage: Run, settings: Settings, client: PromptClient, writer: ResultWriter
) -> None:
    ended, *waiting = submit(client, "a", "b", "c", batch_id="spring")
    submit(client, "other", batch_id="spring-2")
    submit(client, "spring")
    # Its result has come, and the checkpoint does not say so yet.
    writer.write([failed(*ended)])
    done = zimage("cancel", "--batch", "spring", "--timeout", "0", "--json")
    assert done.returncode == 1
    assert outcomes(done) == {
        "a": ("ended_before", "FAILED"),
        "b": ("asked", None),
        "c": ("asked", None),
    }
    assert {each.source for each in sent(settings)} == {source for _, source in waiting}
    writer.write([cancelled(*each) for each in waiting])
    done = zimage("cancel", "--batch", "spring", "--json")
    assert done.returncode == 0
    assert {status for _, status in outcomes(done).values()} == {"FAILED", "CANCELLED"}
    assert len(sent(settings)) == 2, "what has ended is not cancelled again"

    nothing = zimage("cancel", "--batch", "summer")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "batch summer: no request is waiting" in nothing.stderr


def test_an_id_that_is_too_long_does_not_keep_its_batch_from_being_cancelled(
    zimage: Run, settings: Settings, client: PromptClient
) -> None:
    submit(client, "a", batch_id="spring")
    long = random.Random(1).randbytes(400_000).hex()
    value = Codec().encode_request(PromptRequest(prompt="a", request_id=long, batch_id="spring"), "t")
    producer = Producer(producer_config(settings.kafka))
    producer.produce(settings.topics.requests, value=value, partition=2)
    assert producer.flush(TIMEOUT_S) == 0
    done = zimage("cancel", "--batch", "spring", "--timeout", "0", "--json")
    assert outcomes(done) == {"a": ("asked", None), long: ("asked", None)}, done.stderr
    assert {each.request_id for each in sent(settings)} == {"a", long[:128]}


def test_ids_come_from_a_file(zimage: Run, settings: Settings, client: PromptClient, tmp_path: Path) -> None:
    names = [f"r{number}" for number in range(20)]
    submit(client, *names)
    submit(client, "other")
    lines = [*names[:10], "", *(json.dumps({"request_id": name, "line": 1}) for name in names[10:]), "r3"]
    (tmp_path / "ids.txt").write_text("\r\n".join(lines), encoding="utf-8-sig")
    done = zimage("cancel", "--file", "ids.txt", "--timeout", "0", "--json")
    assert outcomes(done) == dict.fromkeys(names, ("asked", None))
    assert {each.request_id for each in sent(settings)} == set(names)
    done = zimage("cancel", "--file", "-", "--timeout", "0", stdin="other\n")
    assert done.stdout == "other: asked, not ended yet\n"


def test_only_the_record_that_waits_is_cancelled(
    zimage: Run, settings: Settings, client: PromptClient, writer: ResultWriter
) -> None:
    (old,) = submit(client, "r", tenant="shop")
    writer.write([failed(*old)])
    commit(settings, old[1].partition, Checkpoint(old[1].offset + 1))
    (new,) = submit(client, "r", tenant="shop")
    submit(client, "r", tenant="other")
    done = zimage("cancel", "r", "--tenant", "shop", "--timeout", "0", "--json")
    said = json.loads(done.stdout)
    assert (said["outcome"], said["tenant"]) == ("asked", "shop")
    assert (said["partition"], said["offset"]) == (new[1].partition, new[1].offset)
    assert [each.source for each in sent(settings)] == [new[1]]


def test_a_request_behind_an_open_transaction_is_cancelled(zimage: Run, settings: Settings) -> None:
    upstream = open_transaction(settings, "t", partition=1)
    done = zimage("cancel", "t", "--timeout", "0")
    assert done.stdout == "t: asked, not ended yet\n"
    (cancellation,) = sent(settings)
    assert (cancellation.source.partition, cancellation.source.offset) == (1, 0)
    upstream.abort_transaction(TIMEOUT_S)


def test_ctrl_c_tells_what_was_sent(start: Start, settings: Settings, client: PromptClient) -> None:
    submit(client, "r")
    process = start("cancel", "r", "--timeout", str(TIMEOUT_S))
    until(lambda: len(sent(settings)) == 1, TIMEOUT_S, "the cancellation is sent")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (130, "")
    assert "cancellations were sent for 1 request(s) that have not ended yet" in err


def run(settings: Settings, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zimage_stream", *words]
    env = environment_of(settings) | env
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=DEADLINE_S)


def test_a_deployment_without_the_topic_is_told_how_to_create_it(settings: Settings) -> None:
    topics = settings.topics.model_copy(update={"cancellations": f"{settings.topics.requests}.none"})
    older = settings.model_copy(update={"topics": topics})
    with PromptClient(older) as client:
        submit(client, "r")
    done = run(older, "cancel", "r")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"zimage: topic {topics.cancellations}: ")
    assert "zimage topics create" in done.stderr


def test_a_topic_with_too_few_partitions_is_told(settings: Settings) -> None:
    name = f"{settings.topics.requests}.narrow"
    topics = settings.topics.model_copy(update={"cancellations": name})
    (spec,) = [each for each in required_topics(topics, 1) if each.name == name]
    make_topics(settings.kafka, [spec], replication_factor=1)
    narrow = settings.model_copy(update={"topics": topics})
    producer = Producer(producer_config(settings.kafka))
    value = Codec().encode_request(PromptRequest(prompt="a", request_id="r"), topics.requests)
    producer.produce(topics.requests, value=value, partition=3)
    assert producer.flush(TIMEOUT_S) == 0
    done = run(narrow, "cancel", "r")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"topic {name} has 1 partition(s), fewer than the requests topic" in done.stderr
    assert "zimage topics check" in done.stderr


def test_a_small_queue_delays_and_loses_nothing(settings: Settings, client: PromptClient) -> None:
    count = 1_500
    client.submit_many(PromptRequest(prompt="a", batch_id="many") for _ in range(count))
    done = run(
        settings,
        *("cancel", "--batch", "many", "--timeout", "0", "--json"),
        ZIMAGE_KAFKA__EXTRA='{"queue.buffering.max.messages": "10"}',
    )
    assert set(outcomes(done).values()) == {("asked", None)}
    assert len(outcomes(done)) == count
    assert len({each.source for each in sent(settings)}) == count
