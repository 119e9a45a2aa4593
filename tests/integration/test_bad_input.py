"""Each row of the table of bad input: one terminal outcome, a clear message, no effect on other requests."""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from tests.fleet.arena import Arena, client_config, open_arena
from tests.fleet.checker import position_of
from tests.fleet.topics import topics_named
from tests.integration.bad_input import CASES, MAX_PIXELS, Case, written
from tests.services import KafkaAddress, MinioAddress, RegistryAddress
from zimage_stream import ImageResult
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import without_reasons
from zimage_stream.events.registry import Registry
from zimage_stream.kafka.clients import producer_config
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import TopicSpec, create_topics, make_topics

DEADLINE_S = 240.0
PARTITIONS = 4
OWN: list[tuple[str, str | bytes | None]] = [("mine", b"\xff\x00"), ("mine", b"twice"), ("none", None)]

Place = tuple[int, int]


@dataclass
class Served:
    """The records that were sent and their outcomes, by location."""

    places: dict[str, Place]
    keys: dict[Place, bytes]
    values: dict[Place, bytes | None]
    innocents: set[Place]
    results: dict[Place, list[ImageResult]] = field(default_factory=lambda: defaultdict(list))
    letters: dict[Place, list[Record]] = field(default_factory=lambda: defaultdict(list))


@pytest.fixture(scope="module")
def arena(
    kafka: KafkaAddress,
    minio: MinioAddress,
    registry: RegistryAddress,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Arena]:
    run = uuid.uuid4().hex[:12]
    topics = topics_named(run)
    # Allows larger records than our own topic, so that the worker has to reject those that are too large.
    make_topics(kafka.settings, [TopicSpec(topics.requests, PARTITIONS, {"max.message.bytes": 4 << 20})], 1)
    create_topics(kafka.settings, topics, replication_factor=1)
    store = minio.settings(topics.requests)
    overrides: dict[str, Any] = {
        "registry": {"url": registry.url, "auto_register": True},
        "engine": {"simulated_ms": 0, "max_pixels": MAX_PIXELS},
    }
    folder = tmp_path_factory.mktemp("arena")
    opened = open_arena(kafka.settings, store, topics, folder, overrides)
    opened.store.make_bucket(store.bucket)
    with opened.fleet:
        opened.fleet.start("worker").wait_ready()
        yield opened


@pytest.fixture(scope="module")
def served(arena: Arena, registry: RegistryAddress) -> Served:
    """Send all cases, a valid request after each, and wait for all outcomes."""
    topics = arena.settings.topics

    def register(text: str) -> int:
        with SchemaRegistryClient({"url": registry.url, "timeout": 10}) as client:
            return int(client.register_schema(f"{uuid.uuid4().hex}-value", Schema(text, "AVRO")))

    sent: dict[str, Place] = {}
    out = Served({}, {}, {}, set())
    producer = Producer({**producer_config(arena.settings.kafka), "linger.ms": 0})

    def send(name: str, key: bytes, value: bytes | None) -> Place:
        def delivered(error: Any, message: Message) -> None:
            assert error is None, error
            sent[name] = position_of(client_config(arena.settings.kafka), message, sent.values())

        producer.produce(
            topics.requests, key=key, value=value, headers=OWN, on_delivery=delivered, partition=0
        )
        assert producer.flush(DEADLINE_S) == 0
        out.keys[sent[name]], out.values[sent[name]] = key, value
        return sent[name]

    for number, case in enumerate(CASES):
        value = case.value(register) if callable(case.value) else case.value
        out.places[case.sent] = send(case.sent, f"\xff{number}".encode("latin-1"), value)
        # The scheduler may reorder requests with the same id, but the cases below depend on the order.
        if case.sent == "a request":
            _wait(arena, out, {out.places[case.sent]})
        out.innocents.add(send(f"innocent {number}", b"k", written(request_id=f"innocent-{number}")))
    _wait(arena, out, set(sent.values()))
    return out


def _wait(arena: Arena, out: Served, wanted: set[Place]) -> None:
    """Read both topics from the beginning until every wanted record has its terminal event."""
    settings = arena.settings
    deadline = time.monotonic() + DEADLINE_S
    with closing(Codec(Registry(settings.registry))) as codec:
        while not wanted <= out.results.keys() | out.letters.keys():
            assert time.monotonic() < deadline, wanted - out.results.keys() - out.letters.keys()
            out.results.clear()
            out.letters.clear()
            for record in _all(arena, settings.topics.results):
                result = codec.decode_result(record.value)
                out.results[result.source.partition, result.source.offset].append(result)
            for record in _all(arena, settings.topics.dead_letters):
                said = dict(record.headers)
                number, offset = (said[f"__connect.errors.{name}"] for name in ("partition", "offset"))
                out.letters[int(number or b""), int(offset or b"")].append(record)


def _all(arena: Arena, topic: str) -> Iterator[Record]:
    with TopicReader(arena.settings.kafka, topic) as reader:
        reader.start()
        yield from reader.read_to_end()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.sent)
def test_bad_input(case: Case, served: Served) -> None:
    place = served.places[case.sent]
    results, letters = served.results[place], served.letters[place]
    assert (len(results), len(letters)) == (int(case.has_result), int(case.dies))
    if case.dies:
        (letter,) = letters
        headers = dict(letter.headers)
        message = (headers["__connect.errors.exception.message"] or b"").decode()
        assert (headers["zimage.code"] or b"").decode() == case.outcome
        assert case.says in message
        assert len(message) < 1_000
        # What was dead can be read back byte for byte.
        assert letter.key == served.keys[place]
        assert letter.value == served.values[place]
        assert without_reasons(list(letter.headers)) == OWN
    if case.has_result:
        (result,) = results
        assert result.status == ("FAILED" if case.dies else case.outcome)
        if case.dies:
            assert result.error is not None
            assert result.error.code == case.outcome
            assert case.says in result.error.message


def test_the_requests_in_between_are_served(served: Served) -> None:
    assert {result.status for place in served.innocents for result in served.results[place]} == {"SUCCEEDED"}
    assert {len(served.results[place]) for place in served.innocents} == {1}
    assert not served.innocents & {place for place, letters in served.letters.items() if letters}


def test_a_request_sent_twice_has_two_results_and_one_image(served: Served) -> None:
    (first,), (second,) = (served.results[served.places[n]] for n in ("a request", "the same request again"))
    assert first.image == second.image
    assert first.source != second.source
