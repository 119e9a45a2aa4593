"""Progress on real services: what a worker says of requests, and that it serves on when nobody takes it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
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
from PIL import Image

from tests.fleet.arena import Arena
from tests.fleet.workers import WorkerProcess, until
from tests.integration.test_health import samples
from tests.services import Kafka, KafkaAddress, MinioAddress
from zimage_stream import PromptClient, PromptRequest, ResultTimeoutError
from zimage_stream.events.codec import Codec
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import environment_of

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

    @pytest.mark.parametrize("level", ["stages", "steps"])
    def test_shows_previews_to_those_who_ask_for_them(self, arena: Arena, level: str) -> None:
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS=level)
        with PromptClient(arena.settings) as client:
            asked = [image_request("a", previews=3), image_request("b", previews=1), image_request("c")]
            ids = [client.submit(request) for request in asked]
            assert all(client.wait(each, timeout=120).succeeded for each in ids)
        many = 2 * 3 + (3 * STEPS if level == "steps" else 3 + 1)
        until(lambda: counts(worker).get("published") == many, 30, "all is published")
        found = events(arena)
        for request_id, after in zip(ids, ([1, 2, 3], [2], []), strict=True):
            seen = [event for event in found[request_id] if event.preview is not None]
            assert [(event.stage, event.step) for event in seen] == [("STEP", step) for step in after]
            told = range(1, STEPS + 1) if level == "steps" else after
            assert stages(found[request_id]) == [
                f"STARTED 0/{STEPS}",
                *(f"STEP {step}/{STEPS}" for step in told),
                f"GENERATED {STEPS}/{STEPS}",
            ]
            for event in seen:
                image = Image.open(io.BytesIO(event.preview or b""))
                assert (image.format, image.size) == ("JPEG", (64, 64))

    def test_says_nothing_where_that_is_off(self, arena: Arena) -> None:
        worker = self.start(arena, ZIMAGE_WORKER__PROGRESS="off")
        arena.send([image_request(previews=3)])
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
        admin = AdminClient(common_config(arena.settings.kafka))
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
    admin = AdminClient(common_config(arena.settings.kafka))
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


class TestAClient:
    @pytest.fixture
    def slow(self, arena: Arena) -> WorkerProcess:
        """A worker that takes about a tenth of a second for each step of these images."""
        settings = {"ZIMAGE_ENGINE__SIMULATED_MS": "200000", "ZIMAGE_WORKER__PROGRESS": "steps"}
        return arena.fleet.start("worker", **settings).wait_ready()

    def test_follows_its_requests_until_they_have_their_results(
        self, arena: Arena, slow: WorkerProcess
    ) -> None:
        with PromptClient(arena.settings) as client:
            ids = [client.submit(image_request(f"{n}")) for n in range(3)]
            others = client.submit(image_request("another"))
            found: dict[str, list[Progress]] = defaultdict(list)
            for event in client.progress(ids, timeout=120):
                found[event.request_id].append(event)
            assert all(client.wait(each, timeout=120).succeeded for each in ids)
            client.wait(others, timeout=120)
        assert found.keys() == set(ids)
        for each in found.values():
            steps = [f"STEP {step}/{STEPS}" for step in range(1, STEPS + 1)]
            # The result may be read before the last event.
            assert stages(each)[: STEPS + 1] == [f"STARTED 0/{STEPS}", *steps]

    def test_sees_the_previews_that_it_asked_for(self, arena: Arena, slow: WorkerProcess) -> None:
        with PromptClient(arena.settings) as client:
            request_id = client.submit(image_request(previews=2))
            found = list(client.progress([request_id], timeout=120))
            assert client.wait(request_id, timeout=120).succeeded
        assert [event.step for event in found if event.preview] == [1, 3]

    def test_follows_requests_of_others_from_where_they_have_got_to(
        self, arena: Arena, slow: WorkerProcess
    ) -> None:
        with PromptClient(arena.settings) as author, PromptClient(arena.settings) as other:
            other.open_reader().close()
            request_id = author.submit(image_request())
            first = next(author.progress([request_id], timeout=120))
            found = list(other.progress([request_id], timeout=120))
            assert author.wait(request_id, timeout=120).succeeded
        assert found[0] == first
        assert stages(found)[0] == f"STARTED 0/{STEPS}"

    def test_hears_nothing_of_an_older_request_with_the_same_id(self, arena: Arena) -> None:
        worker = arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
        request = image_request()
        with PromptClient(arena.settings) as client:
            client.wait(client.submit(request), timeout=120)
            until(lambda: counts(worker).get("published") == 2, 30, "all is published")
            client.submit(request)
            # Its image is in the store, so nothing is generated for it.
            assert list(client.progress([request.request_id], timeout=120)) == []

    def test_without_the_topic_waits_for_the_results_alone(self, arena: Arena) -> None:
        admin = AdminClient(common_config(arena.settings.kafka))
        topic = arena.settings.topics.progress
        admin.delete_topics([topic])[topic].result(60)
        until(lambda: topic not in admin.list_topics(timeout=60).topics, 60, "the topic is gone")
        arena.fleet.start("worker", ZIMAGE_ENGINE__SIMULATED_MS="0").wait_ready()
        with PromptClient(arena.settings) as client:
            request_id = client.submit(image_request())
            assert list(client.progress([request_id], timeout=120)) == []
            assert client.wait(request_id, timeout=120).succeeded
        assert topic not in admin.list_topics(timeout=60).topics

    def test_gives_up_when_its_time_is_over(self, arena: Arena) -> None:
        with PromptClient(arena.settings) as client:
            request_id = client.submit(image_request())
            with pytest.raises(ResultTimeoutError, match=request_id):
                list(client.progress([request_id], timeout=1))


def on_a_terminal(arena: Arena, *words: str, stdin: str = "") -> tuple[str, str]:
    """Run ``zimage`` with stderr on a terminal. Returns stdout, and what the terminal was sent."""
    terminal, ours = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "zimage_stream", *words],
        env={**os.environ, **environment_of(arena.settings), "TERM": "xterm", "NO_COLOR": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=ours,
        text=True,
    )
    os.close(ours)
    screen: list[bytes] = []

    def read() -> None:
        with open(terminal, "rb", buffering=0) as shown, contextlib.suppress(OSError):
            while more := shown.read(65_536):
                screen.append(more)

    reading = threading.Thread(target=read)
    reading.start()
    out, _ = process.communicate(stdin, timeout=240)
    reading.join(120)
    assert process.returncode == 0
    return out, b"".join(screen).decode()


class TestACommand:
    @pytest.fixture(autouse=True)
    def worker(self, arena: Arena) -> WorkerProcess:
        """A worker that takes a quarter of a second for each step of these images."""
        settings = {"ZIMAGE_ENGINE__SIMULATED_MS": "500000", "ZIMAGE_WORKER__PROGRESS": "steps"}
        return arena.fleet.start("worker", **settings).wait_ready()

    small = ("--width", "64", "--height", "64", "--steps", str(STEPS))

    def test_that_waits_for_one_image_shows_its_steps_on_a_terminal(self, arena: Arena) -> None:
        out, screen = on_a_terminal(arena, "produce", "a heron", *self.small, "--wait", "--json")
        assert json.loads(out)["status"] == "SUCCEEDED"
        assert f"a heron: step 2 of {STEPS}" in screen
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", screen)

    def test_that_waits_for_a_file_shows_what_is_being_generated(self, arena: Arena) -> None:
        lines = "".join(f'{{"prompt": "heron {number}"}}\n' for number in range(3))
        words = ("produce", "--file", "-", "--batch", "b", *self.small, "--wait", "--json")
        out, screen = on_a_terminal(arena, *words, stdin=lines)
        assert [json.loads(line)["status"] for line in out.splitlines()] == ["SUCCEEDED"] * 3
        for number in range(3):
            assert f"heron {number}: step 2 of {STEPS}" in screen
        assert "succeeded 3" in screen

    def test_that_follows_results_shows_progress_beside_them(self, arena: Arena, tmp_path: Path) -> None:
        out, err = tmp_path / "out", tmp_path / "err"
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "zimage_stream", "results", "--follow", "--progress", "--json"],
                env={**os.environ, **environment_of(arena.settings)},
                stdout=stdout,
                stderr=stderr,
            )

        def reads() -> str | None:
            # Of what happens before it reads, it shows no progress.
            (request_id,) = arena.send([image_request()])
            arena.wait_answered(60)
            return request_id if f"STARTED   {request_id}\n" in err.read_text() else None

        request_id = until(reads, 120, "the command reads")
        until(lambda: request_id in out.read_text(), 60, "the result is shown")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert request_id in {json.loads(line)["request_id"] for line in out.read_text().splitlines()}
        shown = [line for line in err.read_text().splitlines() if request_id in line]
        assert shown[:3] == [
            f"STARTED   {request_id}",
            f"STEP      {request_id}  1 of {STEPS}",
            f"STEP      {request_id}  2 of {STEPS}",
        ]
