"""The judge of a run: a separate process that shares no code with the product and trusts nothing it reports.

It reads results and dead letters from the first to the last record while the faults happen. Once its standard
input is closed, it reads all of them a second time, downloads every image, and asks the brokers what the
group has committed and whether a transaction is open.

    python -m tests.chaos.verify PLAN.json

The plan names the topics, the group, the store, the accepted records (a file of lines that ``stage.py``
writes) and the file for the report. A line about an accepted record lists its permitted outcomes:
``SUCCEEDED``, ``FAILED/<code>``, or ``dead/<code>`` for a record that cannot be decoded.

The plan's file ``cancelled`` has a line for each cancellation that was sent, and another one with the time of
its acknowledgement. Such a request may also end as CANCELLED, and must if no worker had seen it before. No
other request may.

If the plan's file ``cut`` exists, Kafka has lost accepted requests and given their offsets to others. Then
the judge also reads the requests, and expects no more than is possible: records in the log are answered once,
lost ones at most once. The file names the partitions that workers reported as stopped; only there may
requests wait, and each partition that lost an answered request must be among them.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)
from confluent_kafka import admin as kafka_admin
from confluent_kafka.admin import AdminClient
from minio import Minio

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "zimage.ImageResult.v1.avsc").read_text())
SINGLE_OBJECT_HEADER, REGISTRY_HEADER = 10, 5
CANCELLED = "CANCELLED/CANCELLED"
HEEDED_WITHIN_S = 30.0
"""Longest time from a cancellation's acknowledgement to the last upload for its request: a partition whose
worker was killed has no other for some seconds."""
STABLE_WITHIN_S = 180.0
"""Time within which the broker ends a dead worker's transaction: 20 s."""

LetterPosition = tuple[int, int]


@dataclass(frozen=True)
class Event:
    """A record of results or dead letters. ``place``: position of the request; ``at``: its own position."""

    topic: str
    at: LetterPosition
    place: LetterPosition
    status: str
    code: str | None
    body: dict[str, Any]

    @property
    def outcome(self) -> str:
        return f"{self.status}/{self.code}" if self.code else self.status


@dataclass
class Report:
    """The findings. A working product gives empty lists."""

    accepted: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, kind: str, what: object) -> None:
        self.problems[kind].append(str(what))


class Reader:
    """Reads results and dead letters, or the given topics, read_committed, from their beginnings."""

    def __init__(self, plan: dict[str, Any], *topics: str) -> None:
        self._dead = plan["dead_letters"]
        self._consumer = Consumer(
            {
                **plan["kafka"],
                "group.id": "verify",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 50,
            }
        )
        places = [
            TopicPartition(topic, number, 0)
            for topic in topics or (plan["results"], plan["dead_letters"])
            for number in self._partitions(topic)
        ]
        self._open = {(place.topic, place.partition) for place in places}
        self._consumer.assign(places)

    def _partitions(self, topic: str) -> list[int]:
        """The topic's partitions; waits until the broker that answers has heard of the topic."""
        deadline = time.monotonic() + STABLE_WITHIN_S
        while True:
            found = self._consumer.list_topics(topic, timeout=120).topics[topic]
            if found.partitions and found.error is None:
                return list(found.partitions)
            assert time.monotonic() < deadline, f"no partitions of {topic}: {found.error}"
            time.sleep(0.2)

    def events(self, stop: threading.Event | None = None) -> Iterator[Event]:
        """Yield events as they arrive, until ``stop`` is set; without it, to the current end."""
        for topic, at, message in self.messages(stop):
            yield self._event(topic, at, message)

    def messages(self, stop: threading.Event | None = None) -> Iterator[tuple[str, LetterPosition, Any]]:
        """Yield each record with its topic and position; until when as for :meth:`events`."""
        ended: set[tuple[str, int]] = set()
        while not (stop.is_set() if stop else ended == self._open):
            message = self._consumer.poll(0.2)
            if message is None:
                continue
            topic, number = message.topic() or "", message.partition() or 0
            if message.error() is not None:
                # The end of a partition, or a broker that is away for the moment.
                if (topic, number) in self._open:
                    ended.add((topic, number))
                continue
            yield topic, (number, message.offset() or 0), message
        self._consumer.close()

    def _event(self, topic: str, at: LetterPosition, message: Any) -> Event:
        headers = {name: (raw or b"").decode(errors="replace") for name, raw in message.headers() or ()}
        if topic == self._dead:
            place = int(headers["__connect.errors.partition"]), int(headers["__connect.errors.offset"])
            value = message.value() or b""
            letter = {"sha256": hashlib.sha256(value).hexdigest(), "key_sha256": None}
            if headers.get("zimage.value-bytes"):
                # It has only the first bytes, and the hash and size of all.
                assert len(value) < int(headers["zimage.value-bytes"])
                letter["sha256"] = headers["zimage.value-sha256"]
            if not headers.get("zimage.key-bytes"):
                letter["key_sha256"] = hashlib.sha256(message.key() or b"").hexdigest()
            return Event(topic, at, place, "dead", headers.get("zimage.code"), letter)
        framed = message.value()
        body_at = REGISTRY_HEADER if framed[:1] == b"\0" else SINGLE_OBJECT_HEADER
        read: Any = fastavro.schemaless_reader(io.BytesIO(framed[body_at:]), SCHEMA, None)
        body: dict[str, Any] = dict(read)
        place = body["source"]["partition"], body["source"]["offset"]
        return Event(topic, at, place, body["status"], (body["error"] or {}).get("code"), body)


def main(plan_file: str) -> None:
    plan = json.loads(Path(plan_file).read_text())
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    first: list[Event] = []
    with Path(plan["events"]).open("w", buffering=1) as out:
        for event in Reader(plan).events(stop):
            first.append(event)
            seen = {"t": time.time(), "place": event.place, "outcome": event.outcome}
            out.write(json.dumps(seen) + "\n")
    report = judge(plan, first, list(Reader(plan).events()))
    assert not [name for name in sys.modules if name.startswith("zimage")], "the judge shares code"
    Path(plan["report"]).write_text(json.dumps(vars(report)))


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def judge(plan: dict[str, Any], first: list[Event], second: list[Event]) -> Report:
    """Compare what was published with what was sent."""
    lines = [json.loads(line) for line in Path(plan["accepted"]).read_text().splitlines()]
    report = Report(len(lines))
    vanished = {(event.topic, event.at) for event in first} - {(event.topic, event.at) for event in second}
    for one in vanished:
        report.note("events seen during the run and gone after it", one)
    if Path(plan["cut"]).exists():
        lines, second = _judge_cut(report, plan, lines, second)
    accepted = {(line["partition"], line["offset"]): line for line in lines}
    cancelled = _cancelled(plan)
    for place in cancelled.keys() & accepted.keys():
        line = accepted[place]
        line["allowed"] = [CANCELLED] if cancelled[place]["strict"] else [*line["allowed"], CANCELLED]
    results: dict[LetterPosition, list[Event]] = defaultdict(list)
    dead: dict[LetterPosition, list[Event]] = defaultdict(list)
    for event in second:
        (dead if event.status == "dead" else results)[event.place].append(event)
    for place, line in accepted.items():
        _judge_one(report, place, line, results[place], dead[place])
    for place in (results.keys() | dead.keys()) - accepted.keys():
        if results[place] or dead[place]:
            report.note("answers to records that were never sent", place)
    _judge_objects(report, plan, [event for found in results.values() for event in found])
    _judge_unwanted(report, plan, accepted, cancelled)
    if cancelled and not report.outcomes[CANCELLED]:
        report.note("cancellations without effect", f"all {len(cancelled)}")
    _judge_group(report, plan, accepted)
    return report


def _judge_cut(
    report: Report, plan: dict[str, Any], lines: list[dict[str, Any]], events: list[Event]
) -> tuple[list[dict[str, Any]], list[Event]]:
    """Judge lines whose records were lost from the log or wait in a stopped partition. Returns the other
    lines, and the events about them."""
    stopped = set(json.loads(Path(plan["cut"]).read_text()))
    log = {
        at: hashlib.sha256(message.value() or b"").hexdigest()
        for _, at, message in Reader(plan, plan["requests"]).messages()
    }
    kept, left, went_back = [], list(events), set()
    for line in lines:
        place = line["partition"], line["offset"]
        if log.get(place) == line["sha256"]:
            kept.append(line)
            continue
        own = [event for event in events if event.place == place and _is_about(event, line)]
        left = [event for event in left if event not in own]
        report.outcomes["lost by Kafka"] += 1
        if max(Counter(event.topic for event in own).values(), default=0) > 1:
            report.note("duplicates", f"{place}: {[event.outcome for event in own]}, lost by Kafka")
        if own:
            went_back.add(place[0])
    for partition in went_back - stopped:
        report.note("partitions whose offsets went back unreported", partition)
    answered = {event.place for event in left}
    due = [
        line
        for line in kept
        if (line["partition"], line["offset"]) in answered or line["partition"] not in stopped
    ]
    return due, left


def _is_about(event: Event, line: dict[str, Any]) -> bool:
    """Whether the event answers this request, and not another one at the same offset."""
    if event.status == "dead":
        return bool(event.body["sha256"] == line["sha256"])
    return bool(event.body["request_id"] == line["request_id"])


def _judge_one(
    report: Report, place: LetterPosition, line: dict[str, Any], results: list[Event], dead: list[Event]
) -> None:
    terminal = results or dead
    if not terminal:
        report.note("lost", f"{place} {_named(line)}")
        return
    if len(results) > 1 or len(dead) > 1:
        report.note("duplicates", f"{place}: {[event.outcome for event in results + dead]}")
    event = terminal[0]
    report.outcomes[event.outcome] += 1
    if event.outcome not in line["allowed"]:
        kind = "innocents convicted" if event.code == "WORKER_CRASHED" else "wrong outcomes"
        report.note(kind, f"{place}: {event.outcome}, not one of {line['allowed']}: {_named(line)}")
    if results and (event.status == "FAILED") != bool(dead):
        report.note("results and dead letters that do not match", f"{place}: {event.outcome}, {len(dead)}")
    for letter in dead:
        if letter.body["sha256"] != line["sha256"]:
            report.note("dead letters with other bytes than were sent", f"{place} {_named(line)}")
        if line.get("key_sha256") and letter.body["key_sha256"] not in (None, line["key_sha256"]):
            report.note("dead letters with another key than was sent", f"{place} {_named(line)}")
    for name in ("request_id", "tenant", "attributes"):
        if results and line[name] is not None and event.body[name] != line[name]:
            report.note("altered on the way", f"{place} {name}: {event.body[name]!r} of {line[name]!r}")


def _named(line: dict[str, Any]) -> str:
    return str(line.get("hostile") or line["request_id"])


def _judge_objects(report: Report, plan: dict[str, Any], results: list[Event]) -> None:
    get = _getter(plan["store"])
    for event in results:
        image = event.body["image"]
        if (event.status == "SUCCEEDED") != (image is not None):
            report.note("results without their image", event.place)
        if image is None:
            continue
        try:
            data = get(image["key"])
        except Exception as error:
            report.note("images missing", f"{image['uri']}: {error}")
            continue
        if (len(data), hashlib.sha256(data).hexdigest()) != (image["size_bytes"], image["sha256"]):
            report.note("images that differ from their result", image["uri"])


def _cancelled(plan: dict[str, Any]) -> dict[LetterPosition, dict[str, Any]]:
    """The cancellations that were sent, by record; the later line has the time of the acknowledgement."""
    lines = [json.loads(line) for line in Path(plan["cancelled"]).read_text().splitlines()]
    return {(line["partition"], line["offset"]): line for line in lines}


def _judge_unwanted(
    report: Report,
    plan: dict[str, Any],
    accepted: dict[LetterPosition, dict[str, Any]],
    cancelled: dict[LetterPosition, dict[str, Any]],
) -> None:
    """Check that no image was stored for a request that was cancelled before its upload. From outside that is
    certain where no worker had seen it, and likely where the image is much younger than the
    cancellation."""
    if "path" in plan["store"] or not cancelled:
        return
    store = plan["store"]
    client = Minio(store["endpoint"], store["access_key"], store["secret_key"], secure=False)
    uses = Counter((line["tenant"], line["request_id"]) for line in accepted.values())
    stored = {
        str(found.object_name).rpartition(".")[0]: found.last_modified.timestamp()
        for found in client.list_objects(store["bucket"], recursive=True)
        if found.last_modified is not None
    }
    for place, sent in cancelled.items():
        line = accepted.get(place)
        if line is None or uses[line["tenant"], line["request_id"]] > 1:
            continue
        at = stored.get(f"{line['tenant']}/{line['request_id']}")
        if at is None:
            continue
        if sent["strict"]:
            report.note("images of requests that were cancelled before any worker ran", _named(line))
        elif sent["at"] is not None and at > sent["at"] + HEEDED_WITHIN_S:
            report.note(
                "images stored long after the cancellation", f"{_named(line)}: {at - sent['at']:.1f} s"
            )


def _getter(store: dict[str, Any]) -> Any:
    if "path" in store:
        return lambda key: (Path(store["path"]) / key).read_bytes()
    client = Minio(store["endpoint"], store["access_key"], store["secret_key"], secure=False)

    def get(key: str) -> bytes:
        response = client.get_object(store["bucket"], key)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    return get


def _judge_group(report: Report, plan: dict[str, Any], accepted: dict[LetterPosition, Any]) -> None:
    """Check that the group has resolved everything, and that no transaction is open."""
    # What it knows of leaders it would otherwise believe for a quarter of an hour.
    admin = AdminClient({**plan["kafka"], "metadata.max.age.ms": 10_000})
    last: dict[int, int] = {}
    for partition, offset in accepted:
        last[partition] = max(offset, last.get(partition, -1))
    deadline = time.monotonic() + STABLE_WITHIN_S
    while problems := _group_problems(admin, plan, last):
        if time.monotonic() > deadline:
            for kind, what in problems:
                report.note(kind, what)
            return
        time.sleep(0.5)


def _group_problems(admin: AdminClient, plan: dict[str, Any], last: dict[int, int]) -> list[tuple[str, str]]:
    try:
        return [*_open_transactions(admin, plan), *_unresolved(admin, plan, last)]
    except KafkaException as error:
        # A leader that has just been elected may not know its epoch yet; only one that stays silent counts.
        return [("brokers that do not answer", error.args[0].str())]


def _unresolved(admin: AdminClient, plan: dict[str, Any], last: dict[int, int]) -> Iterator[tuple[str, str]]:
    asked = ConsumerGroupTopicPartitions(
        plan["group"], [TopicPartition(plan["requests"], number) for number in last]
    )
    (answer,) = admin.list_consumer_group_offsets([asked], require_stable=True).values()
    for found in answer.result(60).topic_partitions:
        # The committed offset itself is the lowest unresolved one.
        if found.offset <= last[found.partition]:
            where = (
                f"partition {found.partition}: committed {found.offset}, last sent {last[found.partition]}"
            )
            yield "unresolved offsets", where


def _open_transactions(admin: AdminClient, plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    topics = (plan["results"], plan["dead_letters"], "__consumer_offsets")
    known = admin.list_topics(timeout=120).topics
    kinds: Any = kafka_admin
    asked = {
        TopicPartition(topic, number): kinds.OffsetSpec.latest()
        for topic in topics
        for number in known[topic].partitions
    }
    ends = [
        {(at.topic, at.partition): future.result(60).offset for at, future in answers.items()}
        for answers in (
            admin.list_offsets(asked, isolation_level=level)
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED)
        )
    ]
    for where, stable in ends[0].items():
        if stable < ends[1][where]:
            yield "open transactions", f"{where}: stable to {stable}, ends at {ends[1][where]}"


if __name__ == "__main__":
    main(sys.argv[1])
