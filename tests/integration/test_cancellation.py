"""Cancellations on real services: whatever a request had reached, it gets one terminal event."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from tests.chaos.misbehaving import Trouble, open_misbehaving
from tests.fleet.arena import Arena, client_config
from tests.fleet.workers import WorkerProcess, until
from tests.integration.test_health import samples
from tests.services import KafkaAddress, MinioAddress, RegistryAddress
from zimage_stream import PromptClient, PromptRequest
from zimage_stream.engines.base import ImageSpec
from zimage_stream.engines.simulated import service_seconds
from zimage_stream.errors import SubmitError, TopicMissingError
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Code, Source, Status
from zimage_stream.kafka.canceller import Canceller

STEP_S = 1.0
SIDE = 64
WINDOW = 24


def image_request(prompt: str = "a picture", **fields: object) -> PromptRequest:
    return PromptRequest(prompt=prompt, width=SIDE, height=SIDE, **fields)  # type: ignore[arg-type]


def cancelled(worker: WorkerProcess) -> dict[str, float]:
    """How many requests the worker ended because they were cancelled, by what they had reached."""
    found = samples(worker).items()
    return {stage: value for (name, stage), value in found if name == "zimage_cancelled_total"}


@pytest.fixture
def slow(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    """A worker's device takes eight steps of a second for each image, one image at a time."""
    share = service_seconds([ImageSpec("", SIDE, SIDE, 8, 0.0, 0)], 1.0)
    reference_ms = 8 * STEP_S * 1e3 / share
    return make_arena(
        kafka, minio, engine={"simulated_ms": reference_ms, "max_batch": 1}, worker={"window": WINDOW}
    )


@pytest.fixture
def client(slow: Arena) -> Iterator[PromptClient]:
    with PromptClient(slow.settings) as client:
        yield client


def test_what_waits_and_what_is_being_generated_can_be_cancelled(slow: Arena, client: PromptClient) -> None:
    worker = slow.fleet.start("worker").wait_ready()
    first = client.submit(image_request())
    worker.wait_begun()
    second, third = (client.submit(image_request()) for _ in range(2))

    assert client.cancel(third, reason="another word")
    ended = client.wait(third, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert ended.error is not None
    assert (ended.error.code, ended.error.message) == (Code.CANCELLED, "it was cancelled: another word")
    assert client.cancel(first)
    ended = client.wait(first, timeout=120)
    assert (ended.status, ended.attempts, ended.image) == (Status.CANCELLED, 0, None)
    assert client.wait(second, timeout=120).status is Status.SUCCEEDED
    counted = cancelled(worker)
    assert (counted["generating"], sum(counted.values())) == (1, 2)


def test_a_request_far_back_in_the_log_ends_within_seconds(slow: Arena, client: PromptClient) -> None:
    requests = [image_request(f"picture {number}") for number in range(3_000)]
    slow.send(requests[:-1])
    worker = slow.fleet.start("worker").wait_ready()
    worker.wait_begun()
    last = client.submit(requests[-1])
    assert client.cancel(last)
    assert client.wait(last, timeout=10).status is Status.CANCELLED
    assert cancelled(worker) == {"fetched": 1}


def test_a_cancellation_written_with_a_registry_is_read_once_its_schema_is_known(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress, registry: RegistryAddress
) -> None:
    settings = {"url": registry.url, "auto_register": True}
    arena = make_arena(kafka, minio, engine={"simulated_ms": 0}, registry=settings)
    with PromptClient(arena.settings) as client:
        cancelled, other = (client.submit(image_request()) for _ in range(2))
        assert client.cancel(cancelled)
        worker = arena.fleet.start("worker").wait_ready()
        assert client.wait(other, timeout=120).status is Status.SUCCEEDED
        assert client.wait(cancelled, timeout=120).status is Status.CANCELLED
    assert arena.fleet.generated() == {other: 1}
    assert worker.ready() == (True, [])


def reference_ms(seconds: float) -> float:
    """The setting by which one image takes this long."""
    return seconds * 1e3 / service_seconds([ImageSpec("", SIDE, SIDE, 8, 0.0, 0)], 1.0)


def cancellation(arena: Arena, partition: int, offset: int, request_id: str = "r") -> Cancellation:
    source = Source(topic=arena.settings.topics.requests, partition=partition, offset=offset)
    return Cancellation(request_id=request_id, source=source, requested_at=datetime.now(UTC))


def cancel(arena: Arena, ids: Iterable[str]) -> None:
    """Cancel requests that the arena has sent."""
    settings = arena.settings
    places = {request_id: place for place, request_id in arena.accepted.items()}
    canceller = Canceller(settings.kafka, settings.topics.cancellations, Codec(), "test")
    canceller.send([cancellation(arena, *places[each], each) for each in ids])
    canceller.close()


def write(arena: Arena, values: Iterable[bytes | None], topic: str, partition: int = 0) -> None:
    """Write these values to a topic as they are."""
    producer = Producer({**client_config(arena.settings.kafka), "linger.ms": 50})
    for value in values:
        while True:
            try:
                producer.produce(topic, value, partition=partition)
            except BufferError:
                producer.poll(1.0)
            else:
                break
    assert producer.flush(120) == 0


def wait_counted(worker: WorkerProcess, name: str, count: int) -> None:
    until(lambda: samples(worker).get((name, ""), 0) >= count, 60, f"{name} is {count}")


def stored(arena: Arena, request_id: str) -> bool:
    bucket = arena.settings.store.bucket
    found = arena.store.list_objects(bucket_name=bucket, recursive=True)
    return any(request_id in (each.object_name or "") for each in found)


Make = Callable[..., Arena]


@pytest.fixture
def make(make_arena: Make, kafka: KafkaAddress, minio: MinioAddress) -> Make:
    """``make(seconds, partitions=1, engine={...})``: one image takes this long."""

    def made(seconds: float, partitions: int = 1, **overrides: dict[str, object]) -> Arena:
        engine = {"simulated_ms": reference_ms(seconds), "max_batch": 1} | overrides.pop("engine", {})
        return make_arena(kafka, minio, partitions, engine=engine, **overrides)

    return made


def test_in_company_only_the_cancelled_one_ends(make: Make) -> None:
    arena = make(4.0, engine={"max_batch": 4})
    requests = [image_request(f"in company {number}") for number in range(4)]
    ids = arena.send(requests)
    worker = arena.fleet.start("worker").wait_ready()
    wait_counted(worker, "zimage_wait_seconds_count", 4)
    cancel(arena, [ids[1]])
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    found = report.by_request()
    assert found[ids[1]]["status"] == "CANCELLED"
    assert [found[each]["attempts"] for each in ids] == [1, 0, 1, 1]
    assert report.statuses() == {"SUCCEEDED": 3, "CANCELLED": 1}
    assert [stored(arena, each) for each in ids] == [True, False, True, True]
    assert sum(cancelled(worker).values()) == 1


def test_a_batch_that_nobody_wants_leaves_the_device_to_the_next(make: Make) -> None:
    # Nobody lives to see this batch end by itself.
    arena = make(10_000.0, engine={"max_batch": 4})
    ids = arena.send([image_request(f"in company {number}") for number in range(4)])
    worker = arena.fleet.start("worker").wait_ready()
    wait_counted(worker, "zimage_wait_seconds_count", 4)
    (quick,) = arena.send([image_request("quick", steps=1)])
    cancel(arena, ids)
    until(lambda: len(arena.seen()) == 4, 30, "the four have ended")
    wait_counted(worker, "zimage_wait_seconds_count", 5)
    assert cancelled(worker) == {"generating": 4}
    cancel(arena, [quick])
    report = arena.wait_answered(30)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"CANCELLED": 5}
    assert {found[0]["attempts"] for found in report.results.values()} == {0}


class Always(random.Random):
    """Every exchange is hit."""

    def random(self) -> float:
        return 0.0


def test_an_upload_that_has_begun_is_finished_and_one_that_has_not_is_dropped(
    make: Make, minio: MinioAddress
) -> None:
    with open_misbehaving(minio.endpoint, "/nothing is refused/", Always()) as store:
        arena = make(3.0, worker={"upload_threads": 1})
        ids = arena.send([image_request("one"), image_request("other")])
        worker = arena.fleet.start("worker", ZIMAGE_STORE__ENDPOINT=store.endpoint).wait_ready()
        wait_counted(worker, "zimage_look_up_seconds_count", 2)
        with store.playing(Trouble.STALLED):
            # One is being uploaded; the other waits for the only thread that uploads.
            wait_counted(worker, "zimage_encode_seconds_count", 2)
            # Whichever the store answered for first was generated first.
            ids = [line["request_id"] for line in worker.lines() if line["message"] == "generated"]
            (third,) = arena.send([image_request("third")])
            cancel(arena, [*ids, third])
            # They are read in order, and the last one waits for its look-up or its turn.
            until(lambda: len(arena.seen()) == 1, 60, "the third has ended")
        report = arena.wait_answered(60)
        arena.assert_exactly_once(report)
        found = report.by_request()
        assert [found[each]["status"] for each in (*ids, third)] == ["SUCCEEDED", "CANCELLED", "CANCELLED"]
        assert [stored(arena, each) for each in (*ids, third)] == [True, False, False]
        assert found[ids[1]]["attempts"] == 0
        assert cancelled(worker)["delivering"] == 1


def test_one_that_is_tried_again_and_again_can_be_cancelled(make: Make) -> None:
    arena = make(0.01, engine={"simulated_faults": {"failing": "raise"}}, worker={"max_attempts": 12})
    (failing,) = arena.send([image_request("failing")])
    worker = arena.fleet.start("worker").wait_ready()
    until(lambda: samples(worker).get(("zimage_attempts_total", "retried"), 0) >= 3, 60, "it was retried")
    cancel(arena, [failing])
    report = arena.wait_answered(30)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"CANCELLED": 1}
    assert 3 <= report.by_request()[failing]["attempts"] < 12


def test_a_suspect_that_was_cancelled_kills_nobody_any_more(make: Make) -> None:
    arena = make(0.01, engine={"simulated_faults": {"deadly": "kill"}})
    (deadly,) = arena.send([image_request("deadly")])
    worker = arena.fleet.start("worker")
    assert worker.wait(60) == -signal.SIGKILL
    cancel(arena, [deadly])
    arena.send([image_request("harmless")])
    worker.start().wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"CANCELLED": 1, "SUCCEEDED": 1}
    assert worker.exit_code() is None


def test_what_is_cancelled_while_its_partition_moves_ends_once(make: Make) -> None:
    arena = make(0.1, partitions=12)
    ids = arena.send([image_request(f"picture {number}") for number in range(240)])
    worker = arena.fleet.start("first").wait_ready()
    worker.wait_begun()
    unwanted = ids[::2]
    waves = [unwanted[start::6] for start in range(6)]
    joins = threading.Thread(target=lambda: arena.fleet.start("second").wait_ready())
    joins.start()
    for wave in waves[:3]:
        cancel(arena, wave)
    joins.join()
    second = arena.fleet.workers[1]
    until(second.partitions, 60, "the second has partitions")
    worker.signal(signal.SIGTERM)
    for wave in waves[3:]:
        cancel(arena, wave)
    report = arena.wait_answered(90)
    arena.assert_exactly_once(report)
    found = report.by_request()
    assert {found[each]["status"] for each in ids[1::2]} == {"SUCCEEDED"}
    ended = [found[each]["status"] for each in unwanted]
    assert set(ended) <= {"SUCCEEDED", "CANCELLED"}
    assert ended.count("CANCELLED") > len(unwanted) // 4
    assert not [each for each in unwanted if found[each]["status"] == "CANCELLED" and stored(arena, each)]


@pytest.mark.parametrize("point", ["produced", "offsets-sent", "committed"])
def test_a_worker_that_dies_over_a_cancellation_leaves_it_to_the_next(make: Make, point: str) -> None:
    arena = make(10_000.0)
    ids = arena.send([image_request("one"), image_request("other")])
    cancel(arena, ids)
    # It first commits that it owns the partition; nothing is marked, so the next commit ends the two.
    dying = arena.fleet.start("worker", ZIMAGE_FAILPOINT=f"{point}:2")
    assert dying.wait(60) == -signal.SIGKILL
    if point == "committed":
        until(lambda: len(arena.seen()) == 2, 30, "both have ended")
    else:
        assert not arena.seen()
    following = arena.fleet.start("next", slot="worker").wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"CANCELLED": 2}
    assert following.exit_code() is None


def test_what_is_cancelled_before_any_worker_runs_is_never_generated(make: Make) -> None:
    arena = make(0.01, partitions=4)
    ids = arena.send([image_request(f"picture {number}") for number in range(40)])
    cancel(arena, ids[::2])
    arena.fleet.start("worker").wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    found = report.by_request()
    assert {found[each]["status"] for each in ids[::2]} == {"CANCELLED"}
    assert {found[each]["status"] for each in ids[1::2]} == {"SUCCEEDED"}
    assert arena.fleet.generated().keys() == set(ids[1::2])


def test_an_id_that_was_cancelled_can_be_used_again(make: Make) -> None:
    arena = make(0.01)
    one = image_request(request_id="same")
    arena.send([one])
    cancel(arena, ["same"])
    worker = arena.fleet.start("worker").wait_ready()
    arena.wait_answered(60)
    arena.send([one])
    arena.wait_answered(60)
    # The next worker reads the cancellation again.
    worker.signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    worker.start().wait_ready()
    arena.send([one])
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert [report.results[place][0]["status"] for place in sorted(arena.accepted)] == [
        "CANCELLED",
        "SUCCEEDED",
        "SUCCEEDED",
    ]


def test_without_the_topic_everything_else_works(make: Make) -> None:
    arena = make(0.01, partitions=4, topics={"cancellations": "there-is-no-such-topic"})
    worker = arena.fleet.start("worker").wait_ready()
    arena.send([image_request(f"picture {number}") for number in range(40)])
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 40}
    with PromptClient(arena.settings) as client:
        one = client.submit(image_request())
        with pytest.raises(TopicMissingError):
            client.cancel(one)
        assert client.wait(one, 60).status is Status.SUCCEEDED
    assert worker.ready() == (True, [])
    said = [line for line in worker.lines() if "there-is-no-such-topic" in line["message"]]
    assert [line["message"] for line in said if line["level"] != "debug"] == [
        "topic there-is-no-such-topic does not exist, so no request can be cancelled"
    ]


def test_a_topic_with_fewer_partitions_serves_those_it_has(make: Make, kafka: KafkaAddress) -> None:
    topic = f"few-{time.time_ns()}"
    admin = AdminClient({**client_config(kafka.settings)})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(120)
    arena = make(0.01, partitions=4, topics={"cancellations": topic})
    ids = arena.send([image_request(f"picture {number}") for number in range(40)])
    places = {request_id: place for place, request_id in arena.accepted.items()}
    (first, *_), (other, *_) = (
        [each for each in ids if (places[each][0] == 0) is here] for here in (True, False)
    )
    cancel(arena, [first])
    with pytest.raises(SubmitError, match=r"has 1 partition\(s\), fewer than the requests topic"):
        cancel(arena, [other])
    worker = arena.fleet.start("worker").wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    assert report.statuses() == {"SUCCEEDED": 39, "CANCELLED": 1}
    assert report.by_request()[first]["status"] == "CANCELLED"
    assert worker.ready() == (True, [])
    admin.delete_topics([topic])[topic].result(120)


def test_garbage_among_the_cancellations_harms_nobody(make: Make) -> None:
    arena = make(0.01)
    ids = arena.send([image_request(f"picture {number}") for number in range(3)])
    rng, codec, topics = random.Random(1), Codec(), arena.settings.topics
    valid = codec.encode_cancellation(cancellation(arena, 0, 1), topics.cancellations)
    garbage: list[bytes | None] = [None, b"", b"\0", b"\xc3\x01", valid[:-1], valid[:12], b"x" * 500_000]
    garbage += [rng.randbytes(rng.randint(1, 200)) for _ in range(200)]
    garbage += [valid[:10] + rng.randbytes(rng.randint(1, 200)) for _ in range(200)]
    garbage += [codec.encode_request(image_request(), topics.cancellations)]
    for topic, partition, offset in (
        ("other", 0, 0),
        (topics.requests, 1, 0),
        (topics.requests, -1, 0),
        (topics.requests, 0, -1),
        (topics.requests, 0, -(2**63)),
        (topics.requests, 0, 2**63 - 1),
    ):
        source = Source(topic=topic, partition=partition, offset=offset)
        one = Cancellation(request_id=ids[0], source=source, requested_at=datetime.now(UTC))
        garbage.append(codec.encode_cancellation(one, topics.cancellations))
    write(arena, [*garbage, valid, *garbage], topics.cancellations)
    worker = arena.fleet.start("worker").wait_ready()
    report = arena.wait_answered(60)
    arena.assert_exactly_once(report)
    found = report.by_request()
    assert [found[each]["status"] for each in ids] == ["SUCCEEDED", "CANCELLED", "SUCCEEDED"]
    assert worker.exit_code() is None


def resident_mib(worker: WorkerProcess) -> float:
    for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


FLOOD = 100_000


def bogus(arena: Arena, count: int) -> Iterator[bytes]:
    """Cancellations of offsets that the log does not have."""
    codec, topic = Codec(), arena.settings.topics.cancellations
    for number in range(count):
        yield codec.encode_cancellation(cancellation(arena, 0, 10**9 + number), topic)


def wait_read(arena: Arena) -> None:
    """Wait until the worker has read all cancellations of partition 0."""
    (failing,) = arena.send([image_request("failing, and tried again for minutes")])
    cancel(arena, [failing])
    until(lambda: set(arena.accepted) <= arena.seen(), 60, "the last of them was heeded")
    assert arena.report().by_request()[failing]["status"] == "CANCELLED"


@pytest.mark.slow
def test_a_flood_of_what_does_not_exist_takes_neither_time_nor_memory(make: Make) -> None:
    arena = make(0.01, engine={"simulated_faults": {"failing": "raise"}}, worker={"max_attempts": 12})
    worker = arena.fleet.start("worker").wait_ready()
    topic = arena.settings.topics.cancellations
    flood = list(bogus(arena, FLOOD))

    def serve_meanwhile() -> tuple[float, float]:
        """How long a request takes at most, and the worker's memory when it has read them all."""
        took: list[float] = []
        with PromptClient(arena.settings) as client:
            flooding = threading.Thread(target=lambda: write(arena, flood, topic))
            flooding.start()
            while flooding.is_alive() or len(took) < 50:
                began = time.monotonic()
                one = client.submit(image_request("meanwhile"))
                assert client.wait(one, timeout=60).status is Status.SUCCEEDED
                took.append(time.monotonic() - began)
            flooding.join()
        wait_read(arena)
        return max(took), resident_mib(worker)

    # Whatever a flood makes the process reserve. What it kept of one, the next would add to.
    serve_meanwhile()
    _, before = serve_meanwhile()
    took, after = serve_meanwhile()
    grown = after - before
    assert arena.report().duplicates == []
    sys.stdout.write(f"memory grew by {grown:.1f} MiB; a request took at most {took:.2f} s\n")
    assert grown < 20, f"{grown:.1f} MiB"


@pytest.mark.slow
def test_the_last_of_a_hundred_thousand_waiting_requests_ends_within_two_seconds(make: Make) -> None:
    arena = make(10.0)
    codec, topic = Codec(), arena.settings.topics.requests
    values = (codec.encode_request(image_request(f"picture {number}"), topic) for number in range(FLOOD))
    write(arena, values, topic)
    worker = arena.fleet.start("worker").wait_ready()
    worker.wait_begun()
    with PromptClient(arena.settings) as client:
        took = []
        for _ in range(5):
            last = client.submit(image_request("the last"))
            began = time.monotonic()
            assert client.cancel(last)
            assert client.wait(last, timeout=120).status is Status.CANCELLED
            took.append(time.monotonic() - began)
    sys.stdout.write(f"it took {', '.join(f'{each:.2f}' for each in took)} s\n")
    assert median(took) < 2.0, took
    assert cancelled(worker) == {"fetched": 5}
