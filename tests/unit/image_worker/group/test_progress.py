"""The publisher of progress: what it sends, and that nothing stops because of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from prometheus_client import CollectorRegistry

from tests.unit.image_worker.jobs import job
from zimage_consumers.image_worker.group import progress
from zimage_consumers.image_worker.group.progress import (
    MAX_NOTICES,
    MAX_NOTICES_WITH_PREVIEWS,
    ProgressPublisher,
    events_of,
)
from zimage_consumers.image_worker.window.jobs import Notice, notice_of
from zimage_stream import Settings
from zimage_stream.errors import SchemaMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.events.progress import MAX_PREVIEW_BYTES, Progress, ProgressStage
from zimage_stream.kafka.embedded import EmbeddedBroker
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import KafkaSettings
from zimage_stream.telemetry.metrics import Metrics


def notice(count: int = 1) -> Notice:
    return notice_of(ProgressStage.STEP, [job(batch_id="b", tenant="t") for _ in range(count)], 3, 8)


class Here:
    """A publisher and its counts."""

    def __init__(self, settings: Settings | None = None, codec: Codec | None = None) -> None:
        self._registry = CollectorRegistry()
        self.publisher = ProgressPublisher(
            settings or Settings(), codec or Codec(), "slot", Metrics(self._registry)
        )

    def count(self, outcome: str) -> float:
        name = "zimage_progress_events_total"
        return self._registry.get_sample_value(name, {"outcome": outcome}) or 0.0

    def counted(self, outcome: str, count: int) -> None:
        """Return once so many events have had this outcome."""
        deadline = time.monotonic() + 120
        while self.count(outcome) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert self.count(outcome) == count


@pytest.fixture
def start() -> Iterator[Callable[..., Here]]:
    """Starts publishers, and ends them."""
    started: list[Here] = []

    def begin(*parts: Any) -> Here:
        started.append(Here(*parts))
        started[-1].publisher.start()
        return started[-1]

    yield begin
    for here in started:
        here.publisher.stop()
        here.publisher.join(120)
        assert not here.publisher.is_alive()


def test_events_say_of_each_request_what_the_notice_says() -> None:
    told = notice(2)
    assert events_of(told, "slot") == [
        Progress(
            request_id=request.request_id,
            tenant="t",
            batch_id="b",
            source=source,
            stage=ProgressStage.STEP,
            step=3,
            steps=8,
            worker="slot",
            at=told.at,
        )
        for source, request in told.subjects
    ]


def test_what_is_told_is_published_under_the_request_s_id(start: Callable[..., Here]) -> None:
    told = notice(2)
    with EmbeddedBroker() as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers)
        here = start(Settings(kafka=kafka))
        here.publisher.tell(told)
        here.counted("published", 2)
        with TopicReader(kafka, Settings().topics.progress, uncommitted=True) as reader:
            reader.start()
            records = list(reader.read_to_end())
    events = {record.key: Codec().decode_progress(record.value) for record in records}
    # Times are in milliseconds on the wire.
    expected = {event.request_id.encode(): (event.stage, event.step) for event in events_of(told, "slot")}
    assert {key: (event.stage, event.step) for key, event in events.items()} == expected
    assert {key: event.request_id.encode() for key, event in events.items()} == {key: key for key in events}
    assert {dict(record.headers)["ce_type"] for record in records} == {b"zimage.Progress.v1"}


def test_more_than_fits_into_the_queue_is_dropped_and_nobody_waits() -> None:
    here = Here()
    for _ in range(MAX_NOTICES + 3):
        here.publisher.tell(notice(2))
    assert here.count("dropped") == 6


def test_telling_waits_for_nobody() -> None:
    here = Here()
    started = time.monotonic()
    for _ in range(3):
        here.publisher.tell(notice(2))
    # Nothing publishes them: the thread is not started.
    assert time.monotonic() - started < 1.0


class FakeProducer:
    """A producer without a broker, to which everything can happen."""

    topics: tuple[str, ...] = ("zimage.progress",)
    looks = 0
    produces: Exception | None = None
    answer: KafkaError | None = None

    def __init__(self, _: object) -> None:
        self._waiting: list[Any] = []

    def list_topics(self, timeout: float) -> Any:
        FakeProducer.looks += 1
        return SimpleNamespace(topics=dict.fromkeys(self.topics))

    def produce(self, *_: object, on_delivery: Any, **__: object) -> None:
        if self.produces is not None:
            raise self.produces
        self._waiting.append(on_delivery)

    def poll(self, _: float) -> None:
        for on_delivery in self._waiting:
            on_delivery(self.answer, None)
        self._waiting.clear()

    def flush(self, _: float) -> None:
        """Do nothing: nothing is in flight."""

    def purge(self) -> None:
        """Do nothing: nothing is in flight."""


@pytest.fixture
def producer(monkeypatch: pytest.MonkeyPatch) -> type[FakeProducer]:
    kind = FakeProducer
    for name in ("looks", "topics", "produces", "answer"):
        monkeypatch.setattr(kind, name, getattr(kind, name))
    monkeypatch.setattr(progress, "Producer", kind)
    return kind


def with_previews(*encodes: Callable[[], bytes]) -> Notice:
    jobs = [job() for _ in encodes]
    previews = {each.record.source: encode for each, encode in zip(jobs, encodes, strict=True)}
    return notice_of(ProgressStage.STEP, jobs, 3, 8, previews)


def test_a_preview_that_fails_or_is_too_large_is_left_out_of_its_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> bytes:
        raise RuntimeError("no such colour")

    caplog.set_level(logging.DEBUG)
    told = with_previews(lambda: b"one", fail, lambda: bytes(MAX_PREVIEW_BYTES + 1), lambda: b"four")
    assert [event.preview for event in events_of(told, "slot")] == [b"one", None, None, b"four"]
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.DEBUG, "a preview is left out: RuntimeError: no such colour"),
        (logging.DEBUG, f"a preview is left out: it has {MAX_PREVIEW_BYTES + 1} bytes"),
    ]


def test_previews_are_made_on_the_publisher_s_thread_and_only_if_they_can_be_published(
    start: Callable[..., Here], producer: type[FakeProducer]
) -> None:
    made: list[str] = []

    def encode() -> bytes:
        made.append(threading.current_thread().name)
        return b"jpeg"

    here = start()
    here.publisher.tell(with_previews(encode, encode))
    here.counted("published", 2)
    assert made == ["progress"] * 2
    here.publisher._usable, here.publisher._look_at = False, float("inf")
    here.publisher.tell(with_previews(encode))
    here.counted("failed", 1)
    assert len(made) == 2


def test_when_many_notices_wait_no_more_previews_are_kept(producer: type[FakeProducer]) -> None:
    made: list[int] = []

    def encoder(number: int) -> Callable[[], bytes]:
        return lambda: bytes(made.append(number) or 1)  # type: ignore[func-returns-value]

    here = Here()
    count = MAX_NOTICES_WITH_PREVIEWS + 5
    for number in range(count):
        here.publisher.tell(with_previews(encoder(number)))
    here.publisher.start()
    here.counted("published", count)
    here.publisher.stop()
    assert made == list(range(MAX_NOTICES_WITH_PREVIEWS))


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_the_producer_has_no_room_for_is_dropped(
    start: Callable[..., Here], producer: type[FakeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    producer.produces = BufferError()
    here = start()
    here.publisher.tell(notice(3))
    here.counted("dropped", 3)
    producer.produces = None
    here.publisher.tell(notice())
    here.counted("published", 1)
    assert complaints(caplog) == []


def test_a_missing_topic_is_one_line_in_the_log_until_it_is_created(
    start: Callable[..., Here],
    producer: type[FakeProducer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer.topics = ()
    here = start()
    for _ in range(5):
        here.publisher.tell(notice(2))
    here.counted("failed", 10)
    assert producer.looks == 1
    monkeypatch.setattr(progress, "LOOK_AGAIN_S", 0.0)
    here.publisher._look_at = 0.0
    here.publisher.tell(notice())
    here.counted("failed", 11)
    producer.topics = ("zimage.progress",)
    here.publisher.tell(notice())
    here.counted("published", 1)
    assert complaints(caplog) == ["no progress is published to zimage.progress: the topic does not exist"]


@pytest.mark.parametrize(
    ("code", "looks"), [(KafkaError.TOPIC_AUTHORIZATION_FAILED, 1), (KafkaError._MSG_TIMED_OUT, 1)]
)
def test_what_the_brokers_do_not_accept_is_one_line_in_the_log(
    start: Callable[..., Here],
    producer: type[FakeProducer],
    caplog: pytest.LogCaptureFixture,
    code: int,
    looks: int,
) -> None:
    producer.answer = KafkaError(code)
    here = start()
    for number in range(5):
        here.publisher.tell(notice())
        here.counted("failed", number + 1)
    assert producer.looks == looks
    assert len(complaints(caplog)) == 1
    # A refusal holds for a while; silence may end at any moment.
    producer.answer = None
    here.publisher.tell(notice())
    here.counted("published" if code == KafkaError._MSG_TIMED_OUT else "failed", 1 + 5 * (code > 0))


class Forgetful(Codec):
    """Its registry lacks the schema of progress."""

    asked = 0

    def encode_progress(self, progress: Progress, topic: str) -> bytes:
        self.asked += 1
        raise SchemaMissingError("zimage.Progress version 1 is not registered")


def test_a_missing_schema_is_asked_for_once_and_is_one_line_in_the_log(
    start: Callable[..., Here], producer: type[FakeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    codec = Forgetful()
    here = start(Settings(), codec)
    for _ in range(3):
        here.publisher.tell(notice(8))
    here.counted("failed", 24)
    assert codec.asked == 1
    assert len(complaints(caplog)) == 1


@pytest.mark.parametrize("error", [KafkaException(KafkaError(KafkaError._FATAL)), RuntimeError("a bug")])
def test_an_error_of_any_kind_ends_neither_the_thread_nor_the_next_event(
    start: Callable[..., Here], producer: type[FakeProducer], error: Exception
) -> None:
    producer.produces = error
    here = start()
    here.publisher.tell(notice(2))
    here.counted("failed", 2)
    producer.produces = None
    here.publisher._look_at = 0.0
    here.publisher.tell(notice())
    here.counted("published", 1)


def test_the_last_words_are_published_before_it_ends(
    start: Callable[..., Here], producer: type[FakeProducer]
) -> None:
    here = start()
    for _ in range(100):
        here.publisher.tell(notice())
    here.publisher.stop()
    assert here.count("published") == 100
