"""No record, whatever it contains, stops a worker, a command or another request."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.fleet.arena import Arena
from tests.fleet.topics import EVER, take_anything
from tests.fleet.wire import RawProducer
from tests.fleet.workers import until
from tests.integration.test_worker import image_request, read
from tests.services import KafkaAddress, MinioAddress
from tests.unit.events.registries import AnyRegistry
from zimage_consumers.dead_letters.letter import DeadLetter, Decoder
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import without_reasons
from zimage_stream.kafka.record import record_of
from zimage_stream.settings import environment_of


def request(request_id: str) -> bytes:
    return Codec().encode_request(image_request(request_id=request_id), "t")


def zimage(arena: Arena, *words: str, code: int = 0) -> str:
    """Output of a command that ends with this exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "zimage_stream", *words],
        env=environment_of(arena.settings) | {"PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


class Sender:
    """Sends records of any kind, and waits until all are answered."""

    def __init__(self, arena: Arena, compression: str = "none") -> None:
        self._arena = arena
        self._producer = RawProducer(arena.settings.kafka.bootstrap_servers, compression)
        self._count = 0

    def send(self, value: bytes | None, **more: Any) -> int:
        """Send the record. Returns its offset."""
        self._producer.send(self._arena.settings.topics.requests, value, **more)
        self._arena.accepted[0, self._count] = f"record {self._count}"
        self._count += 1
        return self._count - 1

    def letters(self) -> dict[int, DeadLetter]:
        """Wait until all are answered. Returns the dead letters by offset of their record."""
        self._arena.wait_answered(90)
        decoder = Decoder(Codec())
        found: dict[int, DeadLetter] = {}
        for message in read(self._arena, self._arena.settings.topics.dead_letters):
            letter = decoder.letter_of(record_of(message))
            found[int(letter.header("__connect.errors.offset") or "")] = letter
        return found


@pytest.fixture
def arena(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    # One partition, so that every record is behind every earlier one.
    return make_arena(kafka, minio, partitions=1, engine={"simulated_ms": 0})


@pytest.fixture
def anything(arena: Arena) -> Arena:
    """An arena whose requests topic accepts any timestamp, and records of 8 MiB."""
    take_anything(arena.settings.kafka, arena.settings.topics.requests)
    return arena


def test_a_timestamp_outside_the_calendar(anything: Arena) -> None:
    sender = Sender(anything)
    for number, timestamp in enumerate((1_785_000_000_000_000, -(10**15), EVER, -EVER - 1, -1)):
        sender.send(request(f"at-{number}"), timestamp=timestamp)
    sender.send(request("now"))
    # Requests before and after them are answered.
    found = json.loads(zimage(anything, "status", "--json"))
    assert found["unresolved"] == 6
    assert json.loads(zimage(anything, "status", "at-2", "--json"))["phase"] == "waiting"
    assert "retention" not in zimage(anything, "topics", "check", "--partitions", "1", code=1)
    anything.fleet.start("worker")
    report = anything.wait_answered(60)
    assert report.statuses() == {"SUCCEEDED": 6}
    assert "unresolved  0" in zimage(anything, "status")
    assert len(zimage(anything, "results", "--json").splitlines()) == 6


def test_headers_of_any_kind(anything: Arena) -> None:
    anything.fleet.start("worker")
    sender = Sender(anything)
    nul = sender.send(b"poison", headers=[(b"a\0b", b"\0\xff"), (b"", b""), (b"none", None)])
    no_text = sender.send(b"poison", headers=[(b"\xff\xfe", b"x"), (b"mine", b"y")])
    many = sender.send(b"poison", headers=[(b"h%d" % number, b"v") for number in range(100_000)])
    too_many = sender.send(b"poison", headers=[(b"h", b"v")] * 100_001)
    good = sender.send(request("good"), headers=[(b"\xff", b"x"), (b"traceparent", b"t" * 3_000_000)])
    letters = sender.letters()
    # The client shows a header's name only up to a NUL.
    assert without_reasons(letters[nul].headers) == [("a", b"\0\xff"), ("", b""), ("none", None)]
    assert letters[no_text].cut == {"headers-left-out": "all"}
    kept = without_reasons(letters[many].headers)
    assert letters[many].cut == {"headers-left-out": str(100_000 - len(kept))}
    assert kept == [(f"h{number}", b"v") for number in range(len(kept))]
    assert len(kept) > 99_900
    # If there are more than 100,000, it shows none.
    assert without_reasons(letters[too_many].headers) == []
    assert letters.keys() == {nul, no_text, many, too_many}
    assert anything.report().results[0, good][0]["status"] == "SUCCEEDED"


def test_values_that_compress_well_and_are_too_large(anything: Arena) -> None:
    anything.fleet.start("worker")
    sender = Sender(anything, "gzip")
    sizes = [(4 << 20) - 100, (4 << 20) + 1, 40 << 20]
    large = {sender.send(b"\x00" * size, key=b"large"): size for size in sizes}
    good = sender.send(request("good"))
    letters = sender.letters()
    assert {offset: letter.cut["value-bytes"] for offset, letter in letters.items()} == {
        offset: str(size) for offset, size in large.items()
    }
    assert {letter.value for letter in letters.values()} == {b"\x00" * (64 << 10)}
    assert anything.report().results[0, good][0]["status"] == "SUCCEEDED"


def test_requests_with_an_unusable_schema_end_and_others_are_served(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    with AnyRegistry() as registry:
        registry.put(1, '{"properties": {}}', "JSON")
        registry.put(2, {"type": "array", "items": "null"})
        nulls = {"name": "extra", "type": {"type": "array", "items": "null"}}
        registry.put(3, {"type": "record", "name": "zimage.PromptRequest", "fields": [nulls]})
        registry.fail(4)
        arena = make_arena(
            kafka, minio, partitions=1, engine={"simulated_ms": 0}, registry={"url": registry.url}
        )
        topics = arena.settings.topics
        # The id of the schema that results are written with.
        known = {"subject": "s", "id": 9, "version": 1, "schema": "{}"}
        registry.answers[f"/subjects/{topics.results}-value"] = 200, known
        worker = arena.fleet.start("worker")
        sender = Sender(arena)
        for number in (4, 1, 2, 3):
            sender.send(b"\0" + number.to_bytes(4, "big") + b"\xff" * 9)
        sender.send(request("good"))

        def codes() -> dict[int, str]:
            said = [dict(record_of(message).headers) for message in read(arena, topics.dead_letters)]
            return {
                int(each["__connect.errors.offset"] or b""): (each["zimage.code"] or b"").decode()
                for each in said
            }

        until(lambda: len(codes()) == 3 and list(read(arena, topics.results)), 90, "all but one are answered")
        assert codes() == {1: "UNKNOWN_SCHEMA", 2: "UNDECODABLE", 3: "UNDECODABLE"}
        until(lambda: worker.ready() == (True, []), 60, "it can serve and reports ready")
        # Once the schema is fixed, the request is served.
        registry.put(4, '"int"')
        until(lambda: codes().get(0) == "UNDECODABLE", 60, "the one that waited is answered")


def test_a_slow_answer_for_a_schema_id_holds_up_no_other_request(
    make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress
) -> None:
    with AnyRegistry() as registry:
        registry.put(4, '"int"')
        goes_on = registry.hold(4)
        registry.drip(5)
        arena = make_arena(
            kafka, minio, partitions=1, engine={"simulated_ms": 0}, registry={"url": registry.url}
        )
        topics = arena.settings.topics
        known = {"subject": "s", "id": 9, "version": 1, "schema": "{}"}
        registry.answers[f"/subjects/{topics.results}-value"] = 200, known
        arena.fleet.start("worker")
        sender = Sender(arena)
        for number in (4, 5):
            sender.send(b"\0" + number.to_bytes(4, "big") + b"\xff" * 9)
        until(lambda: "/schemas/ids/5" in registry.asked, 90, "both ids are asked for")
        for number in range(20):
            sender.send(request(f"good-{number}"))
        until(lambda: len(list(read(arena, topics.results))) == 20, 90, "the others are served")
        assert list(read(arena, topics.dead_letters)) == []
        goes_on.set()
        until(lambda: list(read(arena, topics.dead_letters)), 90, "what was answered late is read")


def test_header_names_that_are_not_text_end_no_process_that_reads_them(anything: Arena) -> None:
    sender = Sender(anything)
    for _ in range(100):
        sender.send(b"poison", headers=[(b"mine", b"x")])
        sender.send(b"poison", headers=[(b"\xff", b"x"), (b"mine", b"y")])
    # In a separate process: an error that Python does not check for in hot code often ends it.
    program = """
from zimage_stream import load_settings
from zimage_stream.kafka.reader import TopicReader
settings = load_settings()
with TopicReader(settings.kafka, settings.topics.requests) as reader:
    reader.start()
    print(sum(record.headers_lost is not None for record in reader.read_to_end()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment_of(anything.settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "100\n"), done.stderr
