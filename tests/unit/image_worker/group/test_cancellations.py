"""Which cancellations are believed, and how long a partition waits for them; brokers play along."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from zimage_consumers.image_worker.group import cancellations
from zimage_consumers.image_worker.group.cancellations import MAX_UNSETTLED, MIN_TIDY, Cancellations
from zimage_consumers.image_worker.window.assignment import Assignment
from zimage_consumers.image_worker.window.ledger import Ledger
from zimage_stream.checkpoint import Checkpoint
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import Source
from zimage_stream.settings import Settings
from zimage_stream.telemetry.health import Health

TOPIC, REQUESTS = "zimage.cancellations", "zimage.requests"
MISSING = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
FAILED = KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT))


class Brokers:
    """Answers the admin client's questions, and delivers to the only consumer what a test puts there."""

    def __init__(self) -> None:
        self.partitions: int | KafkaException = 12
        self.ends: deque[int | KafkaException] = deque()
        self.answers_ends = True
        self.pending: list[Future[Any]] = []
        self.read_from: set[int] = set()
        self.queue: deque[Any] = deque()
        self.asked = 0

    # -- admin

    def describe_topics(self, topics: TopicCollection, **_: Any) -> dict[str, Future[Any]]:
        self.asked += 1
        if isinstance(self.partitions, KafkaException):
            return {TOPIC: _answer(self.partitions)}
        return {TOPIC: _answer(SimpleNamespace(partitions=[None] * self.partitions))}

    def list_offsets(self, asked: dict[TopicPartition, Any], **_: Any) -> dict[TopicPartition, Future[Any]]:
        found: dict[TopicPartition, Future[Any]] = {}
        for place in asked:
            future: Future[Any] = Future()
            self.pending.append(future)
            found[place] = future
        if self.answers_ends:
            self.answer_ends()
        return found

    def answer_ends(self) -> None:
        for future in self.pending:
            end = self.ends[0] if len(self.ends) == 1 else self.ends.popleft()
            _settle(future, end if isinstance(end, KafkaException) else SimpleNamespace(offset=end))
        self.pending.clear()

    # -- consumer

    def incremental_assign(self, places: list[TopicPartition]) -> None:
        # From the start of what is kept, whoever held the partition before.
        assert {(place.topic, place.offset) for place in places} == {(TOPIC, OFFSET_BEGINNING)}
        self.read_from |= {place.partition for place in places}

    def incremental_unassign(self, places: list[TopicPartition]) -> None:
        self.read_from -= {place.partition for place in places}

    def consume(self, count: int, timeout: float) -> list[Any]:
        assert timeout == 0
        return [self.queue.popleft() for _ in range(min(count, len(self.queue)))]

    def close(self) -> None:
        """Do nothing."""


def _answer(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    _settle(future, value)
    return future


def _settle(future: Future[Any], value: Any) -> None:
    if isinstance(value, KafkaException):
        future.set_exception(value)
    else:
        future.set_result(value)


class Message:
    """A record of the cancellations topic, or an error in place of one."""

    def __init__(self, number: int, value: bytes | None = None, code: int | None = None) -> None:
        self._number, self._value, self._code = number, value, code

    def partition(self) -> int:
        return self._number

    def value(self) -> bytes | None:
        return self._value

    def error(self) -> KafkaError | None:
        return None if self._code is None else KafkaError(self._code)


class Here:
    """The cancellations of some partitions."""

    def __init__(self, brokers: Brokers) -> None:
        self.brokers = brokers
        self.health = Health()
        self.health.set_started()
        self.health.up("kafka")
        self.codec = Codec()
        admin = cast(AdminClient, brokers)
        self.cancellations = Cancellations(Settings(), admin, self.codec, self.health)

    def hold(self, number: int = 0, checkpoint: Checkpoint | None = None) -> Assignment:
        assignment = Assignment(number, Ledger(checkpoint or Checkpoint(0)))
        self.cancellations.begin([assignment])
        return assignment

    def say(self, offset: int, number: int = 0, topic: str = REQUESTS, named: int | None = None) -> None:
        """Write a cancellation of this offset. ``named``: the partition that it names."""
        source = Source(topic=topic, partition=number if named is None else named, offset=offset)
        one = Cancellation(
            request_id="r", source=source, requested_at=datetime.now(UTC), reason=f"of {offset}"
        )
        self.brokers.queue.append(Message(number, self.codec.encode_cancellation(one, TOPIC)))

    def end(self, number: int = 0) -> None:
        self.brokers.queue.append(Message(number, code=KafkaError._PARTITION_EOF))

    def read(self, turns: int = 5) -> list[tuple[int, int]]:
        found = [each for _ in range(turns) for each in self.cancellations.read()]
        return [(assignment.number, offset) for assignment, offset in found]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    brokers = Brokers()
    monkeypatch.setattr(cancellations, "Consumer", lambda config: brokers)
    monkeypatch.setattr(cancellations, "ASK_AGAIN_S", 0.0)
    return Here(brokers)


def test_a_partition_waits_until_its_cancellations_are_read(here: Here) -> None:
    one, other = here.hold(0), here.hold(1)
    here.brokers.ends.append(100)
    here.say(7)
    assert here.read() == [(0, 7)]
    assert one.cancelled == {7: "of 7"}
    assert not one.informed
    here.end(0)
    here.read()
    assert [each.informed for each in (one, other)] == [True, False]
    here.end(1)
    here.read()
    assert [each.informed for each in (one, other)] == [True, True]
    assert not here.cancellations.behind
    assert here.brokers.read_from == {0, 1}


def test_a_partition_waits_until_it_is_known_which_offsets_exist(here: Here) -> None:
    one = here.hold()
    here.brokers.ends.append(100)
    here.brokers.answers_ends = False
    here.say(7)
    here.end()
    assert here.read() == []
    assert not one.informed
    here.brokers.answer_ends()
    assert here.read() == [(0, 7)]
    assert one.informed


def test_what_no_log_has_is_forgotten(here: Here) -> None:
    one = here.hold()
    here.brokers.ends.append(100)
    for offset in (*range(100, 5_100), 2**62, 99):
        here.say(offset)
    here.end()
    assert here.read(30) == [(0, 99)]
    assert one.cancelled == {99: "of 99"}
    assert one.informed
    assert all(held.settled for held in here.cancellations._held.values())


def test_what_was_written_after_the_question_is_asked_for_again(here: Here) -> None:
    one = here.hold()
    here.brokers.ends.extend([100, 101])
    here.brokers.answers_ends = False
    here.say(5)
    here.end()
    here.read()
    # Its request was written after the log's end was read, and before its cancellation.
    here.say(100)
    assert here.read() == []
    here.brokers.answer_ends()
    assert here.read() == [(0, 5)]
    here.brokers.answer_ends()
    assert here.read() == [(0, 100)]
    assert one.informed


def test_an_end_that_cannot_be_had_is_asked_for_again_and_nothing_is_forgotten(here: Here) -> None:
    one = here.hold()
    here.brokers.ends.extend([FAILED, FAILED, 100])
    here.say(5)
    here.end()
    assert here.read(10) == [(0, 5)]
    assert one.informed


@pytest.mark.parametrize(
    ("offset", "topic", "named"),
    [(5, "other", 0), (5, REQUESTS, 1), (-1, REQUESTS, 0), (-(2**63), REQUESTS, 0)],
)
def test_what_names_no_record_of_this_partition_is_ignored(
    here: Here, offset: int, topic: str, named: int
) -> None:
    one = here.hold()
    here.brokers.ends.append(100)
    here.say(offset, topic=topic, named=named)
    here.end()
    assert here.read() == []
    assert one.cancelled == {}
    assert one.informed


def test_what_is_resolved_is_ignored(here: Here) -> None:
    one = here.hold(checkpoint=Checkpoint(10, 0b110))
    here.brokers.ends.append(100)
    for offset in (9, 10, 11, 12, 13):
        here.say(offset)
    here.end()
    assert here.read() == [(0, 10), (0, 13)]
    assert set(one.cancelled) == {10, 13}


def test_what_is_resolved_while_the_end_is_asked_for_is_ignored(here: Here) -> None:
    one = here.hold()
    here.brokers.ends.append(100)
    here.brokers.answers_ends = False
    here.say(0)
    here.read()
    one.ledger.observe(0)
    one.ledger.adopt(one.ledger.after([0]))
    here.brokers.answer_ends()
    assert here.read() == []
    assert one.cancelled == {}


@pytest.mark.parametrize("value", [None, b"", b"garbage", b"\xc3\x01" + b"x" * 9, b"\0\0\0\0\1what"])
def test_garbage_is_skipped_with_a_warning(
    here: Here, value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    one = here.hold()
    here.brokers.ends.append(100)
    here.brokers.queue.append(Message(0, value))
    here.say(5)
    here.end()
    assert here.read() == [(0, 5)]
    assert one.informed
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_repeated_cancellation_is_reported_once(here: Here) -> None:
    here.hold()
    here.brokers.ends.append(100)
    for _ in range(3):
        here.say(5)
    assert here.read() == [(0, 5)]
    here.say(5)
    assert here.read() == []


def test_without_the_topic_nothing_waits_and_one_line_says_so(
    here: Here, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    here.brokers.partitions = MISSING
    monkeypatch.setattr(cancellations, "LOOK_AGAIN_S", 0.0)
    one, other = here.hold(0), here.hold(1)
    here.read(50)
    assert one.informed
    assert other.informed
    assert here.health.ready() == (True, [])
    assert [record.message for record in caplog.records] == [
        f"topic {TOPIC} does not exist, so no request can be cancelled"
    ]
    assert here.brokers.asked > 2
    # It is created later.
    here.brokers.partitions = 12
    here.brokers.ends.append(100)
    here.read()
    here.say(5)
    assert here.read() == [(0, 5)]


def test_a_partition_that_the_topic_lacks_waits_for_nothing_and_is_read_once_it_is_there(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "LOOK_AGAIN_S", 0.0)
    here.brokers.partitions = 1
    here.brokers.ends.append(100)
    here.hold(0)
    late = here.hold(3)
    here.read()
    assert late.informed
    assert here.brokers.read_from == {0}
    # The operator adds partitions.
    here.brokers.partitions = 4
    here.read()
    assert here.brokers.read_from == {0, 3}
    here.say(5, 3)
    assert here.read() == [(3, 5)]


def test_a_partition_that_both_topics_were_given_waits_for_its_cancellations(here: Here) -> None:
    here.hold(11)
    here.read()
    here.brokers.partitions = 24
    here.brokers.ends.append(100)
    added = here.hold(23)
    here.read()
    assert not added.informed
    here.say(5, 23)
    here.end(23)
    assert here.read() == [(23, 5)]
    assert added.informed


def test_a_topic_that_has_all_it_needs_is_not_asked_for_again(here: Here) -> None:
    here.hold(0)
    here.read(50)
    assert here.brokers.asked == 1


def test_a_topic_that_cannot_be_described_is_asked_for_again(here: Here) -> None:
    here.brokers.partitions = FAILED
    one = here.hold()
    here.read()
    assert not one.informed
    here.brokers.partitions = 12
    here.end()
    here.read()
    assert one.informed


def test_a_partition_starts_without_those_that_cannot_be_read_and_readyz_says_so(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "WAIT_S", 0.0)
    one = here.hold()
    here.brokers.ends.append(100)
    here.brokers.queue.append(Message(0, code=KafkaError.TOPIC_AUTHORIZATION_FAILED))
    here.read()
    assert one.informed
    ready, (reason,) = here.health.ready()
    assert not ready
    assert reason.startswith("cancellations of partition 0 cannot be read: ")
    assert "uthoriz" in reason
    # They arrive after all.
    here.say(5)
    here.end()
    assert here.read() == [(0, 5)]
    assert here.health.ready() == (True, [])


def test_a_partition_does_not_wait_for_ever_while_they_keep_arriving(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellations, "LONGEST_WAIT_S", 0.0)
    one = here.hold()
    here.brokers.ends.append(100)
    here.say(5)
    assert here.read() == [(0, 5)]
    assert one.informed
    assert not here.health.ready()[0]


def test_no_more_are_read_than_can_be_kept_while_no_end_is_known(here: Here) -> None:
    here.hold()
    here.brokers.ends.append(10)
    here.brokers.answers_ends = False
    flood = 3 * MAX_UNSETTLED
    for offset in range(10, 10 + flood):
        here.say(offset)
    here.read(100)
    left = len(here.brokers.queue)
    assert flood - left <= MAX_UNSETTLED + cancellations.RECORDS_PER_TURN
    here.brokers.answers_ends = True
    here.brokers.answer_ends()
    here.read(100)
    assert len(here.brokers.queue) == 0


def test_nothing_is_known_of_a_partition_that_left(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "WAIT_S", 0.0)
    one = here.hold()
    here.brokers.ends.append(100)
    here.brokers.answers_ends = False
    here.read()
    here.say(5)
    here.cancellations.leave({0})
    assert here.read() == []
    assert here.brokers.read_from == set()
    assert one.cancelled == {}
    assert here.health.ready() == (True, [])
    assert not here.cancellations.behind


def test_a_partition_that_comes_back_reads_them_again(here: Here) -> None:
    first = here.hold()
    here.brokers.ends.append(100)
    here.say(5)
    here.end()
    assert here.read() == [(0, 5)]
    here.cancellations.leave({0})
    again = here.hold(checkpoint=Checkpoint(3))
    here.read()
    assert not again.informed
    here.say(5)
    here.end()
    assert here.read() == [(0, 5)]
    assert again.cancelled == {5: "of 5"}
    assert first is not again


@pytest.mark.parametrize("known", [True, False], ids=["gap", "end"])
def test_what_names_gaps_in_the_log_is_forgotten_once_they_are_passed(here: Here, known: bool) -> None:
    one = here.hold()
    here.brokers.ends.append(0)
    rounds = 5
    for end in range(MIN_TIDY, (rounds + 1) * MIN_TIDY, MIN_TIDY):
        here.brokers.ends[0] = end
        for offset in range(end - MIN_TIDY, end):
            here.say(offset)
        assert len(here.read()) == MIN_TIDY
        # Markers and aborted records, which nobody can tell before the next record or the end.
        if known:
            one.ledger.observe(end)
        else:
            one.ledger.reach(end)
    assert len(one.cancelled) <= MIN_TIDY + rounds
