"""The faults. Each scenario plays its own on a stage, while the workers serve a workload."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.admin._resource import ResourceType

from tests.chaos.misbehaving import PASSING, Trouble, open_misbehaving
from tests.chaos.stage import Stage
from tests.chaos.workloads import image_request
from tests.fleet.arena import client_config
from tests.fleet.workers import until
from zimage_consumers.image_worker.failpoints import POINTS, VARIABLE
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Source
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.topics import TopicError, create_topics
from zimage_stream.stores.connections import TRANSFER_TIMEOUT_S

ROOT = Path(__file__).parents[2]
SESSION_S = 4.0
CLIENTS = {"session.timeout.ms": str(int(SESSION_S * 1e3)), "heartbeat.interval.ms": "1000"}
"""The workers' ``kafka.extra``."""
"""Session timeout of the arena's workers: how long until a dead one is missed."""
POISON = {"raising": "raise", "huge": "oom:0", "deadly": "kill", "endless": "hang", "cursed": "lost"}

Play = Callable[[Stage, float], None]


@dataclass(frozen=True)
class Scenario:
    """A scenario of faults.

    Attributes:
        play: receives the stage and the scale: 1 for the short form; the long form repeats it this many
            times.
        settings: environment of the workers, in addition to the arena's.
        directory: the store is a folder.
        short: part of the short form.
    """

    name: str
    play: Play
    settings: Mapping[str, str] = field(default_factory=dict)
    directory: bool = False
    short: bool = True


def nothing(stage: Stage, scale: float) -> None:
    stage.start_workers()
    stage.pause(6 * scale)


def killed_at_every_point(stage: Stage, scale: float) -> None:
    """Kill a worker at each point in turn: its next life dies at the next point."""
    lives = itertools.chain.from_iterable(itertools.repeat(POINTS, round(3 * scale)))

    def next_life() -> Mapping[str, str]:
        point = next(lives, None)
        if point is None:
            return {}
        stage.fault()
        # Some requests that run alone are resolved in each life, so none is first in line at every death: to
        # be killed alone three times would convict it, whoever did it.
        return {VARIABLE: f"{point}:{stage.rng.randint(8, 36)}"}

    stage.next_life = next_life
    stage.start_workers()
    stage.pause(20 * scale)
    stage.next_life = dict


def killed_at_random(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for _ in range(round(10 * scale)):
        stage.pause(0.5, 2.5)
        victim = stage.rng.choice(stage.crew)
        if victim.exit_code() is None:
            victim.kill()
            stage.fault()


def frozen_past_the_session(stage: Stage, scale: float) -> None:
    """A worker is frozen until others have its partitions, then continues as if nothing had happened."""
    stage.start_workers()
    for _ in range(round(scale)):
        frozen = stage.rng.choice(stage.crew)
        stage.pause(0.5, 1.5)
        # Each worker has work for some seconds when one of them freezes.
        for number in range(300):
            stage.send(image_request(f"queued {number}"))
        stage.pause(0.5)
        frozen.signal(signal.SIGSTOP)
        stage.fault()
        stage.pause(SESSION_S + 3)
        frozen.signal(signal.SIGCONT)
        stage.pause(2)


def two_in_one_slot(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for number in range(round(scale)):
        second = stage.arena.fleet.start(f"second-{number}", slot=stage.crew[0].slot)
        stage.pause(5)
        stage.fault()
        if second.exit_code() is None:
            second.kill()
            stage.fault()
    # As an operator does after correcting that. A fenced worker that has had nothing to do since then would
    # only learn it when it is stopped, and end with a failure.
    stage.crew[0].kill()


def broker_killed(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for _ in range(round(scale)):
        stage.pause(2, 4)
        stage.kafka.kill()
        stage.pause(0.0, 3.0)
        stage.wait_told("kafka has been down for")
        stage.kafka.start()
        stage.fault()
        stage.pause(4)


def broker_paused(stage: Stage, scale: float) -> None:
    stage.start_workers()
    stage.pause(2)
    stage.kafka.pause()
    stage.pause(8 if scale < 2 else 30)
    stage.kafka.resume()
    stage.fault()
    stage.pause(2)


def store_down(stage: Stage, scale: float) -> None:
    stage.start_workers()
    stage.pause(2)
    stage.minio.kill()
    stage.wait_told("store has been down for")
    stage.pause(15 if scale < 2 else 60)
    stage.minio.start()
    stage.fault()


def store_slow(stage: Stage, scale: float) -> None:
    """The store hangs for most of each second."""
    stage.start_workers()
    for _ in range(round(12 * scale)):
        stage.minio.pause()
        stage.pause(0.3, 0.9)
        stage.minio.resume()
        stage.fault()
        stage.pause(0.2)


def store_misbehaves(stage: Stage, scale: float) -> None:
    """Every trouble but an outage, from a proxy in front of the store; the judge queries the store
    directly."""
    opened = ExitStack()
    store = opened.enter_context(open_misbehaving(stage.minio.endpoint, "/refused/", stage.rng))
    stage.at_end.append(opened.close)
    stage.environment["ZIMAGE_STORE__ENDPOINT"] = store.endpoint
    stage.start_workers()
    for _ in range(round(scale)):
        for trouble in stage.rng.sample(PASSING, len(PASSING)):
            stage.pause(0.5)
            with store.playing(trouble):
                # Refused with and without trouble, as long as no other request would be affected.
                for _ in range(3):
                    stage.send(image_request(tenant="refused"), ("FAILED/STORE_REJECTED",))
                # In the long form a stall outlasts the clients' patience: exchanges that they gave up and
                # repeated are served late.
                stage.pause(TRANSFER_TIMEOUT_S + 5 if scale >= 2 and trouble is Trouble.STALLED else 1.2)
                # A stalled exchange counts once it is served.
                if trouble is not Trouble.STALLED:
                    until(lambda trouble=trouble: store.played[trouble], 30, f"{trouble} has hit a request")  # type: ignore[misc]
            # One fault, however many requests it has hit.
            stage.fault()
            until(lambda trouble=trouble: store.played[trouble], 30, f"{trouble} has hit a request")  # type: ignore[misc]
    until(lambda: store.played[Trouble.REFUSED], 30, "an object has been refused")


def disk_full(stage: Stage, scale: float) -> None:
    """The folder's file system is full for a while. Needs the right to mount one."""
    folder = stage.arena.settings.store.path
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, timeout=120)
    stage.at_end.append(lambda: subprocess.run(["umount", "-l", str(folder)], check=True, timeout=120))
    stage.start_workers()
    filler = folder / ".filler"
    for _ in range(round(2 * scale)):
        stage.pause(1, 2)
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        stage.wait_told("store has been down for")
        stage.pause(2)
        filler.unlink()
        stage.fault()
    stage.pause(1)


def poison(stage: Stage, scale: float) -> None:
    """Every kind of record apart from requests that can be served."""
    stage.start_workers()
    for number in range(round(scale)):
        for value in (
            b"",
            b"not avro",
            b"\x00\x00\x00\x00\x2a what no registry knows",
            b"\xc3\x01" + b"x" * 9,
        ):
            undecodable = ("dead/UNDECODABLE", "dead/UNKNOWN_SCHEMA")
            stage.send_bytes(value, undecodable)
            stage.fault()
        for wrong in ({"steps": 0}, {"width": 65}, {"guidance_scale": 3.0}, {"tenant": ".."}):
            stage.send(image_request(**wrong), ("FAILED/INVALID_REQUEST",))
            stage.fault()
        ends = {"raising": "GENERATION_FAILED", "huge": "OUT_OF_MEMORY"}
        for prompt in POISON:
            code = ends.get(prompt, "WORKER_CRASHED")
            stage.send(image_request(f"{prompt} {number}"), (f"FAILED/{code}",))
            stage.flush()
            stage.fault()
        stage.pause(10)


def rebalance_storm(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for number in range(round(5 * scale)):
        guest = stage.arena.fleet.start(f"guest-{number}")
        stage.fault()
        stage.pause(1.5, 3.0)
        guest.signal(signal.SIGTERM)
        stage.fault()
        stage.pause(0.2, 1.0)
        if guest.exit_code() is None and stage.rng.random() < 0.3:
            guest.signal(signal.SIGKILL)


def partitions_added(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for more in (16, 24) if scale < 2 else range(14, 26, 2):
        stage.pause(2)
        stage.add_partitions(more)
        stage.fault()


def gaps_in_the_log(stage: Stage, scale: float) -> None:
    """A transactional producer: half of what it writes is aborted, and every transaction leaves a marker."""
    stage.start_workers()
    upstream = Producer(
        {
            **client_config(stage.arena.settings.kafka),
            "transactional.id": stage.arena.settings.topics.requests,
        }
    )
    upstream.init_transactions(120)
    for number in range(round(8 * scale)):
        upstream.begin_transaction()
        for _ in range(5):
            upstream.produce(stage.arena.settings.topics.requests, b"aborted", partition=number % 3)
        upstream.flush(120)
        upstream.abort_transaction(120)
        stage.fault()
        stage.pause(0.5)


def stale_metadata(stage: Stage, scale: float) -> None:
    """The group's offsets are committed again with metadata made for other offsets, or with garbage."""
    stage.start_workers()
    for rubbish in ("stale", "x" * 3_000, ""):
        stage.pause(2)
        stage.flush()
        earlier = _committed(stage)
        stage.wait_answered()
        _rest_all(stage)
        now = _committed(stage)
        _commit(
            stage,
            [
                TopicPartition(
                    at.topic, at.partition, at.offset, before.metadata if rubbish == "stale" else rubbish
                )
                for at, before in zip(now, earlier, strict=True)
                if at.offset >= 0
            ],
        )
        stage.fault()
        for worker in stage.crew:
            stage.wake(worker)


def sizes_at_the_limits(stage: Stage, scale: float) -> None:
    stage.start_workers()
    for number in range(round(4 * scale)):
        attributes = {f"{n:02}{'k' * 60}": "v" * 190 for n in range(32)}
        stage.send(image_request("𠀋" * 1_999 + str(number % 10), attributes=attributes))
        # Nearly the largest record of the topic, and not decodable.
        stage.send_bytes(b"\xff" * ((1 << 20) - 1_000), ("dead/UNDECODABLE",))
        stage.send(image_request(attributes={"large": "x" * (9 << 10)}), ("FAILED/INVALID_REQUEST",))
        stage.fault()
        stage.pause(1)


def dead_letters_refused(stage: Stage, scale: float) -> None:
    """The topic accepts no dead letters for a while; what cannot be published is withheld, not lost."""
    _refused(stage, stage.arena.settings.topics.dead_letters, round(scale))


def results_refused(stage: Stage, scale: float) -> None:
    _refused(stage, stage.arena.settings.topics.results, round(scale))


def sigterm_while_draining(stage: Stage, scale: float) -> None:
    """A worker is stopped, and stopped again before it has finished: the second signal ends it at once."""
    stage.start_workers()
    for _ in range(round(6 * scale)):
        stage.pause(1, 2)
        leaving = stage.rng.choice(stage.crew)
        if leaving.exit_code() is None:
            leaving.signal(signal.SIGTERM)
            stage.pause(0.0, 0.3)
            if leaving.exit_code() is None:
                leaving.signal(signal.SIGTERM)
            stage.fault()


def clock_stepped(stage: Stage, scale: float) -> None:
    """The wall clock jumps an hour ahead and back. Requests with minutes left must not expire."""
    clock = stage.folder / "clock"
    clock.write_text("0")
    stage.environment["SHIFTED_CLOCK"] = str(clock)
    stage.program = "tests.chaos.shifted"
    stage.start_workers()
    for _ in range(round(2 * scale)):
        for shift in ("3600", "0", "-3600", "0"):
            for _ in range(20):
                stage.send(image_request(expires_at=datetime.now(UTC) + timedelta(minutes=5)))
            # Replaced atomically, so that no reader sees it half written.
            later = clock.with_suffix(".next")
            later.write_text(shift)
            later.replace(clock)
            stage.fault()
            stage.pause(2, 4)


def upgraded(stage: Stage, scale: float) -> None:
    """Workers of the previous commit are replaced by current ones, one after the other, with work in
    flight."""
    old = stage.folder / "old"
    old.mkdir()
    archive = subprocess.run(
        ["git", "archive", "HEAD~1"], cwd=ROOT, check=True, capture_output=True, timeout=120
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(old)], input=archive, check=True, timeout=120)
    paths = os.pathsep.join(str(old / part) for part in ("", "consumers", "producers"))
    stage.next_life = lambda: {"PYTHONPATH": paths}
    stage.start_workers()
    stage.next_life = dict
    for worker in stage.crew:
        stage.pause(2, 4)
        stage.rest(worker)
        worker.signal(stage.rng.choice((signal.SIGTERM, signal.SIGKILL)))
        worker.wait(60)
        stage.wake(worker)
        stage.fault()
    stage.pause(3)


def cancelled_at_every_stage(stage: Stage, scale: float) -> None:
    """Requests are cancelled at random moments, while workers are killed, come and go."""
    for number in range(40):
        stage.send(image_request(f"early {number}"))
    stage.flush()
    # No worker has run yet, so none of these may be generated.
    stage.cancel(stage.some(20, latest=1_000), strict=True)
    stage.flush()
    lives = itertools.cycle(POINTS)

    def next_life() -> Mapping[str, str]:
        return {VARIABLE: f"{next(lives)}:{stage.rng.randint(10, 60)}"} if stage.rng.random() < 0.3 else {}

    stage.start_workers()
    stage.next_life = next_life
    guest = None
    rounds, several = (round(10 * scale), 4) if scale < 2 else (round(18 * scale), 6)
    for number in range(rounds):
        if number % 3 == 0:
            # More than the windows hold: some are fetched only because they are cancelled.
            for each in range(200):
                stage.send(image_request(f"burst {number} {each}"))
            stage.flush()
        # What waits, runs, is being stored, or has ended.
        for _ in range(8):
            stage.cancel(stage.some(several, latest=stage.rng.choice((3, 30, 300))))
            stage.pause(0.05, 0.2)
        match number % 4:
            case 0:
                victim = stage.rng.choice(stage.crew)
                if victim.exit_code() is None:
                    victim.kill()
                    stage.fault()
            case 1:
                guest = stage.arena.fleet.start(f"guest-{number}")
                stage.fault()
            case 3 if guest is not None:
                guest.signal(signal.SIGTERM)
                stage.fault()
    if guest is not None:
        guest.signal(signal.SIGTERM)
    stage.next_life = dict


def cancellations_topic_missing(stage: Stage, scale: float) -> None:
    """Workers are killed where the topic does not exist; they say so, and serve everything."""
    stage.start_workers()
    for _ in range(round(4 * scale)):
        stage.pause(0.5, 2.0)
        stage.rng.choice(stage.crew).kill()
        stage.fault()

    def serving() -> bool:
        return all(
            worker.exit_code() is None and worker.ready()[0] and worker.partitions() for worker in stage.crew
        )

    until(serving, 60, "all workers have partitions")
    for worker in stage.crew:
        assert any("no request can be cancelled" in line["message"] for line in worker.lines()), worker.name


def progress_topic_refused(stage: Stage, scale: float) -> None:
    """The topic takes no records, then is deleted, while steps and previews are told. Nothing waits."""
    stage.start_workers()
    topics = stage.arena.settings.topics
    admin = AdminClient({**client_config(stage.arena.settings.kafka)})

    def topic_is_there() -> bool:
        return topics.progress in admin.list_topics(timeout=60).topics

    def made() -> bool:
        # A topic that is still being deleted cannot be created.
        with suppress(TopicError):
            create_topics(stage.arena.settings.kafka, topics, replication_factor=1)
        return topic_is_there()

    for _ in range(round(2 * scale)):
        stage.pause(1)
        _set_largest(stage, topics.progress, "200")
        stage.fault()
        _send_with_previews(stage)
        _complain_of_progress(stage)
        until(
            lambda: all(worker.ready()[0] for worker in stage.crew), 60, "workers without progress are ready"
        )
        admin.delete_topics([topics.progress])[topics.progress].result(120)
        stage.fault()
        until(lambda: not topic_is_there(), 60, "the topic is gone")
        _send_with_previews(stage)
        # Its successor finds no topic.
        stage.rng.choice(stage.crew).kill()
        stage.fault()
        _send_with_previews(stage)
        _complain_of_progress(stage)
        until(made, 60, "the topic is there again")
    # Workers that are started with the topic publish to it: it was refused for no other reason.
    _rest_all(stage)
    for worker in stage.crew:
        stage.wake(worker)
    _send_with_previews(stage)
    with TopicReader(stage.arena.settings.kafka, topics.progress, uncommitted=True) as reader:
        reader.start()

        def previewed() -> bool:
            record = reader.poll(1.0)
            return record is not None and Codec().decode_progress(record.value).preview is not None

        until(previewed, 60, "previews are published")


def _send_with_previews(stage: Stage) -> None:
    for previews in range(4):
        stage.send(image_request(previews=previews))
    stage.pause(0.5, 1.5)


def _complain_of_progress(stage: Stage) -> None:
    """Wait until a worker has said that no progress is published."""

    def said() -> bool:
        lines = itertools.chain.from_iterable(worker.lines() for worker in stage.crew)
        return any("no progress is published" in line["message"] for line in lines)

    until(said, 60, "a worker says that no progress is published")


def cancellations_flooded(stage: Stage, scale: float) -> None:
    """Somebody writes cancellations of what does not exist, of what has ended, and garbage, as fast as
    possible."""
    stage.start_workers()
    codec, topics = Codec(), stage.arena.settings.topics
    flood = Producer({**client_config(stage.arena.settings.kafka), "linger.ms": 20})
    for _ in range(round(5 * scale)):
        for number in range(10_000):
            partition = number % stage.partitions
            # Too low ones have ended or were nobody's; the others do not exist.
            offset = stage.rng.choice((-1, 2**63 - 1, 10**9 + number, 10**6 + stage.rng.randint(0, 10**6)))
            source = Source(topic=topics.requests, partition=partition, offset=offset)
            value = codec.encode_cancellation(
                Cancellation(request_id="any", source=source, requested_at=datetime.now(UTC)),
                topics.cancellations,
            )
            if number % 10 == 0:
                value = stage.rng.randbytes(100)
            while True:
                try:
                    flood.produce(topics.cancellations, value, partition=partition)
                except BufferError:
                    flood.poll(0.1)
                else:
                    break
            if number % 1_000 == 0:
                stage.cancel(stage.some(3))
        assert flood.flush(120) == 0
        stage.fault()
        if stage.rng.random() < 0.5:
            stage.rng.choice(stage.crew).kill()
            stage.fault()


def _refused(stage: Stage, topic: str, times: int) -> None:
    stage.start_workers()
    for _ in range(times):
        stage.pause(1)
        _set_largest(stage, topic, "200")
        for _ in range(5):
            stage.send(image_request(steps=0), ("FAILED/INVALID_REQUEST",))
        stage.pause(3)
        _set_largest(stage, topic, str(2 << 20))
        stage.fault()
        # What was withheld is served after a restart: only an operator knows that the cause is gone.
        _rest_all(stage)
        for worker in stage.crew:
            stage.wake(worker)


def _set_largest(stage: Stage, topic: str, size: str) -> None:
    admin = AdminClient({**client_config(stage.arena.settings.kafka)})
    entry = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin.incremental_alter_configs([resource])[resource].result(120)


def _rest_all(stage: Stage) -> None:
    for worker in stage.crew:
        stage.rest(worker)
    running = [worker for worker in stage.crew if worker.exit_code() is None]
    for worker in running:
        worker.signal(signal.SIGTERM)
    for worker in running:
        worker.wait(60)


def _committed(stage: Stage) -> list[TopicPartition]:
    with _member(stage) as consumer:
        topic = stage.arena.settings.topics.requests
        found: list[TopicPartition] = consumer.committed(
            [TopicPartition(topic, number) for number in range(stage.partitions)], timeout=120
        )
        return found


def _commit(stage: Stage, offsets: list[TopicPartition]) -> None:
    """Commit once the group is empty, which takes until it has missed members that had hardly joined."""
    with _member(stage) as consumer:

        def taken() -> bool:
            try:
                answers = consumer.commit(offsets=offsets, asynchronous=False) or []
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                    raise
                return False
            return not any(each.error for each in answers)

        until(taken, 30, "the group accepts a tool's commit")


@contextmanager
def _member(stage: Stage) -> Iterator[Consumer]:
    """A client with the group's id that does not join the group, like tools that set offsets."""
    group = stage.arena.settings.worker.group_id
    consumer = Consumer({**client_config(stage.arena.settings.kafka), "group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def _poison_settings() -> dict[str, str]:
    return {
        "ZIMAGE_ENGINE__SIMULATED_FAULTS": json.dumps(POISON),
        "ZIMAGE_ENGINE__HANG_TIMEOUT_S": "2",
    }


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("nothing", nothing, short=False),
        Scenario("killed at every point", killed_at_every_point),
        Scenario("killed at random", killed_at_random, short=False),
        Scenario("frozen past the session", frozen_past_the_session),
        Scenario("two in one slot", two_in_one_slot, short=False),
        Scenario("broker killed", broker_killed),
        Scenario("broker paused", broker_paused, short=False),
        Scenario("store down", store_down),
        Scenario("store slow", store_slow, short=False),
        Scenario("store misbehaves", store_misbehaves),
        Scenario("disk full", disk_full, directory=True, short=False),
        Scenario("poison", poison, _poison_settings(), short=False),
        # With full windows, so that partitions are paused when they leave.
        Scenario("rebalance storm", rebalance_storm, {"ZIMAGE_WORKER__WINDOW": "8"}, short=False),
        Scenario(
            "partitions added",
            partitions_added,
            # By default a consumer looks for new partitions every five minutes.
            {"ZIMAGE_KAFKA__EXTRA": json.dumps(CLIENTS | {"topic.metadata.refresh.interval.ms": "1000"})},
            short=False,
        ),
        Scenario("gaps in the log", gaps_in_the_log),
        Scenario("stale metadata", stale_metadata, short=False),
        Scenario("sizes at the limits", sizes_at_the_limits, short=False),
        Scenario("dead letters refused", dead_letters_refused, short=False),
        Scenario("results refused", results_refused, short=False),
        Scenario("SIGTERM while draining", sigterm_while_draining, short=False),
        Scenario("clock stepped", clock_stepped, short=False),
        Scenario("upgraded", upgraded, short=False),
        # With small windows, so that many are cancelled that are not fetched yet.
        Scenario("cancelled at every stage", cancelled_at_every_stage, {"ZIMAGE_WORKER__WINDOW": "24"}),
        Scenario(
            "cancellations topic missing",
            cancellations_topic_missing,
            {"ZIMAGE_TOPICS__CANCELLATIONS": "there-is-no-such-topic"},
            short=False,
        ),
        Scenario(
            "progress topic refused",
            progress_topic_refused,
            {"ZIMAGE_WORKER__PROGRESS": "steps"},
            short=False,
        ),
        Scenario("cancellations flooded", cancellations_flooded, short=False),
    )
}
