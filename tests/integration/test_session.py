"""A membership in the group on a real broker, when taking over partitions goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from prometheus_client import CollectorRegistry

from tests.fleet.batches import Batch, WireProducer, WireRecord, gzip_members, lz4_and_more
from tests.fleet.topics import configure
from tests.fleet.workers import until
from tests.integration.mock_cluster import MockCluster, Request
from tests.services.addresses import KafkaAddress
from zimage_consumers.image_worker.group import roster, stalls
from zimage_consumers.image_worker.group.publish import ClientsLostError
from zimage_consumers.image_worker.group.roster import draw_nonce
from zimage_consumers.image_worker.group.session import Session
from zimage_consumers.image_worker.window.jobs import Job
from zimage_consumers.image_worker.window.ledger import OffsetStatus
from zimage_consumers.image_worker.window.window import Window
from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.clients import (
    common_config,
    producer_config,
    transactional_config,
    worker_consumer_config,
)
from zimage_stream.kafka.record import Record
from zimage_stream.settings import KafkaSettings, Settings, TopicSettings
from zimage_stream.telemetry.health import Health
from zimage_stream.telemetry.metrics import Metrics

ALL = {0, 1, 2, 3}
"""Partitions of the topic."""
ME = draw_nonce("slot")


@pytest.fixture
def make_session(kafka: KafkaAddress, topics: TopicSettings) -> Callable[..., Session]:
    def make(address: KafkaSettings = kafka.settings, slot: str = "slot", owner: int = ME) -> Session:
        return Session(
            Settings(
                kafka=address,
                topics=topics,
                worker={"group_id": topics.requests},  # type: ignore[arg-type]
            ),
            AdminClient(common_config(address)),
            Window(16_384, 64 << 20),
            Codec(),
            slot=slot,
            owner=owner,
            give_up=lambda: False,
            on_revoke=lambda session: None,
            health=Health(),
            metrics=Metrics(CollectorRegistry()),
        )

    return make


def poll(session: Session, timeout_s: float = 0.1) -> Record | None:
    """Poll as the message path does, which fetches no partition before its cancellations are known."""
    session.cancellations.read()
    session.pause_only(session.window.to_pause())
    return session.poll(timeout_s)


def polled(session: Session) -> set[int]:
    poll(session)
    return set(session.window.assignments)


def poll_for(session: Session, seconds: float) -> set[int]:
    """The partitions it holds after this many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        polled(session)
    return set(session.window.assignments)


def test_while_no_checkpoint_can_be_read_nothing_is_held_and_leaving_is_clean(
    make_session: Callable[..., Session], topics: TopicSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with MockCluster() as cluster:
        cluster.create_topic(topics.requests)
        session = make_session(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers))
        session.join()
        cluster.answer(Request.OFFSET_FETCH, [KafkaError.UNSTABLE_OFFSET_COMMIT] * 1_000)
        until(
            lambda: polled(session) or "cannot be read yet" in caplog.text,
            30,
            "it has queried the checkpoints",
        )
        assert poll_for(session, 2.0) == set()
        assert caplog.text.count("cannot be read yet") == 1
        session.abandon()
        assert session.clean


def test_a_session_that_drops_partitions_unreleased_is_not_clean(make_session: Callable[[], Session]) -> None:
    session = make_session()
    session.join()
    until(lambda: polled(session), 30, "it has partitions")
    session.abandon()
    assert not session.clean


def test_an_abandoned_transaction_holds_up_only_its_own_partitions(
    kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[[], Session]
) -> None:
    dead = Producer(transactional_config(kafka.settings, f"{topics.requests}-dead"))
    dead.init_transactions(120)
    dead.begin_transaction()
    offsets = [TopicPartition(topics.requests, number, 0) for number in (1, 2)]
    # As a tool commits, which a group without members accepts.
    tool = Consumer(worker_consumer_config(kafka.settings, topics.requests, "dead"))
    dead.send_offsets_to_transaction(offsets, tool.consumer_group_metadata(), 30)

    session = make_session()
    session.join()
    until(lambda: polled(session) == ALL - {1, 2}, 30, "it holds what it can")
    session.claim()
    assert poll_for(session, 2.0) == ALL - {1, 2}
    dead.abort_transaction(120)
    until(lambda: polled(session) == ALL, 30, "it holds the rest")
    session.claim()
    session.close()


def test_partitions_that_left_while_paused_deliver_when_they_return(
    kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[[], Session]
) -> None:
    session = make_session()
    session.join()
    until(lambda: polled(session) == ALL, 30, "it holds all partitions")
    session.claim()
    session.pause_only(set(ALL))
    other = Consumer(worker_consumer_config(kafka.settings, topics.requests, "other"))
    other.subscribe([topics.requests])

    def shared() -> bool:
        other.poll(0.1)
        ours, theirs = polled(session), {place.partition for place in other.assignment()}
        return bool(theirs) and theirs == ALL - ours

    until(shared, 30, "the other member has the rest")
    other.close()
    until(lambda: polled(session) == ALL, 30, "it holds all partitions again")
    session.claim()
    session.pause_only(set())

    producer = Producer(producer_config(kafka.settings))
    for number in ALL:
        producer.produce(topics.requests, b"request", partition=number)
    assert producer.flush(120) == 0
    delivered = set()

    def all_delivered() -> bool:
        record = poll(session)
        if record is not None:
            delivered.add(record.partition)
        return delivered == ALL

    until(all_delivered, 15, "a record of each partition")
    session.close()


def test_a_group_that_may_not_be_read_ends_the_session(
    make_session: Callable[..., Session], topics: TopicSettings
) -> None:
    with MockCluster() as cluster:
        cluster.create_topic(topics.requests)
        session = make_session(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers))
        session.join()
        cluster.answer(Request.OFFSET_FETCH, [KafkaError.GROUP_AUTHORIZATION_FAILED] * 9)
        with pytest.raises(ClientsLostError, match="cannot be read"):
            until(lambda: polled(session), 30, "it has partitions")
        assert session.window.assignments == {}
        session.abandon()


def poll_until(session: Session, condition: Callable[[], object], what: str) -> None:
    def met() -> object:
        polled(session)
        return condition()

    until(met, 30, what)


def leave_marks_open(session: Session, kafka: KafkaAddress, topics: TopicSettings) -> None:
    """Take over the partitions, with one request of each running alone, then end like a dead process."""
    session.join()
    poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions")
    session.claim()
    produce(kafka, topics, ALL)
    jobs: list[Job] = []
    while len(jobs) < len(ALL):
        record = poll(session, 1.0)
        if record is not None:
            assignment = session.window.assignments[record.partition]
            assert assignment.ledger.observe(0) is OffsetStatus.NEW
            jobs.append(Job(record, assignment, attempts=1))
    session.commit_marks({job: Mark(job.attempts, open=True, alone=True) for job in jobs})
    session.abandon()


def marks_of(session: Session) -> set[Mark]:
    """The marks of the first request in each partition."""
    return {each.ledger.mark(0) for each in session.window.assignments.values()}


def produce(kafka: KafkaAddress, topics: TopicSettings, partitions: Collection[int]) -> None:
    producer = Producer(producer_config(kafka.settings))
    for number in partitions:
        producer.produce(topics.requests, b"request", partition=number)
    assert producer.flush(120) == 0


class TestMarksLeftOpenByAnotherProcess:
    def test_make_no_request_suspect_if_that_process_is_back_in_the_group(
        self, kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[..., Session]
    ) -> None:
        theirs = draw_nonce("other")
        leave_marks_open(make_session(slot="other", owner=theirs), kafka, topics)
        session, again = make_session(), make_session(slot="other", owner=theirs)
        session.join()
        # The other process gets its time to return; until then nothing that it held is judged.
        poll_for(session, 1.0)
        again.join()

        def shared() -> bool:
            return bool(polled(session)) and polled(session) | polled(again) == ALL

        until(shared, 30, "both have partitions")
        marks = {each.ledger.mark(0) for each in session.window.assignments.values()}
        assert marks == {Mark(1)}
        again.abandon()
        session.abandon()

    def test_are_charged_once_no_member_can_be_that_process(
        self,
        kafka: KafkaAddress,
        topics: TopicSettings,
        make_session: Callable[..., Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(roster, "GRACE_S", 0.5)
        leave_marks_open(make_session(slot="other", owner=draw_nonce("other")), kafka, topics)
        session = make_session()
        session.join()
        poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions")
        assert marks_of(session) == {Mark(2, suspect=True)}
        session.abandon()

    def test_are_charged_at_once_if_its_slot_has_a_new_process(
        self,
        kafka: KafkaAddress,
        topics: TopicSettings,
        make_session: Callable[..., Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(roster, "GRACE_S", 3_600.0)
        leave_marks_open(make_session(owner=ME), kafka, topics)
        session = make_session(owner=ME ^ 1 if ME & 0xFFFF != 1 else ME + 1)
        session.join()
        poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions")
        assert marks_of(session) == {Mark(2, suspect=True)}
        session.abandon()


def test_a_marker_at_the_end_of_the_log_is_committed_as_passed(
    kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[..., Session]
) -> None:
    producer = Producer(transactional_config(kafka.settings, f"{topics.requests}-upstream"))
    producer.init_transactions(120)
    producer.begin_transaction()
    producer.produce(topics.requests, b"request", partition=0)
    producer.commit_transaction(120)
    session = make_session()
    session.join()
    delivered: list[int] = []

    def served() -> bool:
        record = poll(session)
        session.claim()
        if record is not None:
            assignment = session.window.assignments[record.partition]
            assignment.ledger.observe(0)
            delivered.append(record.offset)
            # The result of that does not matter here.
            session.publish([], {0: assignment.ledger.after([0])})
        return bool(delivered) and committed(kafka, topics) == 2

    # Offset 0 is the request, offset 1 the transaction's marker.
    until(served, 30, "the offset behind the marker is committed")
    assert delivered == [0]
    session.close()


def committed(kafka: KafkaAddress, topics: TopicSettings) -> int:
    tool = Consumer({**common_config(kafka.settings), "group.id": topics.requests})
    try:
        (found,) = tool.committed([TopicPartition(topics.requests, 0)], timeout=120)
        return int(found.offset)
    finally:
        tool.close()


class TestALogThatWentBack:
    def test_a_topic_that_was_created_again_is_not_served_from_the_old_offsets(
        self, kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[..., Session]
    ) -> None:
        session = make_session()
        session.join()
        poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions")
        session.claim()
        poll_for(session, 1.0)
        admin = AdminClient(common_config(kafka.settings))
        admin.delete_topics([topics.requests])[topics.requests].result(120)

        def made() -> bool:
            try:
                admin.create_topics([NewTopic(topics.requests, len(ALL), 1)])[topics.requests].result(120)
            except KafkaException:
                return False
            return True

        until(made, 30, "the topic is created again")
        poll_until(session, lambda: not session.window.assignments, "nothing of it is held")
        ready, reasons = session.health.ready()
        assert not ready
        assert any("deleted and created again" in reason for reason in reasons)
        session.close()

    def test_a_checkpoint_that_is_ahead_of_the_log_stops_only_its_partition(
        self, kafka: KafkaAddress, topics: TopicSettings, make_session: Callable[..., Session]
    ) -> None:
        produce(kafka, topics, [0, 1])
        tool = Consumer(worker_consumer_config(kafka.settings, topics.requests, "tool"))
        ahead = Checkpoint(0, resolved=0b110)
        tool.commit(offsets=[TopicPartition(topics.requests, 0, 0, ahead.encode())], asynchronous=False)
        tool.close()
        session = make_session()
        session.join()
        poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions")
        assert [number for number, each in session.window.assignments.items() if each.stopped] == [0]
        assert any("partition 0 is stopped" in reason for reason in session.health.ready()[1])
        session.claim()
        session.close()
        assert not any("partition 0" in reason for reason in session.health.ready()[1])

        # The log has grown since, so only the checkpoint can tell the next owner.
        produce(kafka, topics, [0] * 5)
        session = make_session()
        session.join()
        poll_until(session, lambda: session.window.assignments.keys() == ALL, "it holds all partitions again")
        assert [number for number, each in session.window.assignments.items() if each.stopped] == [0]
        session.close()


def take(session: Session) -> int | None:
    """Observe records as a worker does, without serving them. Returns the offset observed."""
    record = poll(session)
    session.claim()
    if record is None:
        return None
    session.window.assignments[record.partition].ledger.observe(record.offset)
    return record.offset


def stands_still(session: Session) -> list[str]:
    return [reason for reason in session.health.ready()[1] if "is stalled" in reason]


UNOPENED = {"compression.type": "producer"}
"""Topic settings with which the brokers keep batches as they receive them."""


class TestABatchThatCannotBeRead:
    @pytest.mark.parametrize(
        ("batch", "readable"),
        [
            pytest.param(Batch([WireRecord(b"x" * 99)] * 3, "gzip", gzip_members), 1, id="gzip members"),
            pytest.param(Batch([WireRecord(b"x" * 99)] * 3, "lz4", lz4_and_more), 0, id="more behind lz4"),
            pytest.param(Batch([WireRecord(b"x"), WireRecord(b"x", null=-2)]), 1, id="a length of -2"),
        ],
    )
    def test_is_reported_with_its_first_unreadable_offset_until_another_member_has_the_partition(
        self,
        kafka: KafkaAddress,
        topics: TopicSettings,
        make_session: Callable[..., Session],
        monkeypatch: pytest.MonkeyPatch,
        batch: Batch,
        readable: int,
    ) -> None:
        monkeypatch.setattr(stalls, "STALLED_AFTER_S", 1.0)
        configure(kafka.settings, topics.requests, UNOPENED)
        produce(kafka, topics, [0] * 3)
        with WireProducer(kafka.settings.bootstrap_servers) as hand:
            first = hand.send(topics.requests, batch)
        produce(kafka, topics, [0] * 3)
        session = make_session()
        session.join()

        def named() -> list[str]:
            take(session)
            return stands_still(session)

        (reason,) = until(named, 30, "it is named")
        assert reason.startswith("partition 0 is stalled")
        assert f"at offset {first + readable} that cannot be read" in reason
        assert session.partitions.stalled == 1
        assert session.health.is_up("kafka")
        session.close()
        assert stands_still(session) == []

    def test_is_passed_once_the_groups_offset_is_set_behind_it(
        self,
        kafka: KafkaAddress,
        topics: TopicSettings,
        make_session: Callable[..., Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(stalls, "STALLED_AFTER_S", 1.0)
        batch = Batch([WireRecord(b"x" * 99)] * 3, "gzip", gzip_members)
        configure(kafka.settings, topics.requests, UNOPENED)
        with WireProducer(kafka.settings.bootstrap_servers) as hand:
            first = hand.send(topics.requests, batch)
        produce(kafka, topics, [0] * 3)
        session = make_session()
        session.join()

        def named() -> list[str]:
            take(session)
            return stands_still(session)

        until(named, 30, "it is named")
        session.close()
        # As kafka-consumer-groups --reset-offsets does.
        behind = first + len(batch.records)
        tool = Consumer(worker_consumer_config(kafka.settings, topics.requests, "tool"))
        tool.commit(offsets=[TopicPartition(topics.requests, 0, behind)], asynchronous=False)
        tool.close()
        session = make_session()
        session.join()
        taken: list[int] = []

        def all_taken() -> bool:
            offset = take(session)
            taken.extend(() if offset is None else (offset,))
            return len(taken) == 3

        until(all_taken, 30, "the records after it arrive")
        assert taken == [behind, behind + 1, behind + 2]
        assert stands_still(session) == []
        session.close()

    def test_is_told_apart_from_an_open_transaction(
        self,
        kafka: KafkaAddress,
        topics: TopicSettings,
        make_session: Callable[..., Session],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(stalls, "STALLED_AFTER_S", 0.5)
        answers: list[int] = []
        hear = stalls.Stalls._process_answer

        def heard(watch: stalls.Stalls, number: int, *rest: Any) -> None:
            answers.append(number)
            hear(watch, number, *rest)

        monkeypatch.setattr(stalls.Stalls, "_process_answer", heard)
        producer = Producer(transactional_config(kafka.settings, f"{topics.requests}-upstream"))
        producer.init_transactions(120)
        producer.begin_transaction()
        producer.produce(topics.requests, b"request", partition=0)
        assert producer.flush(120) == 0
        produce(kafka, topics, [0])
        session = make_session()
        session.join()

        def asked() -> bool:
            take(session)
            return len(answers) >= 2

        until(asked, 30, "the leader was queried twice")
        assert stands_still(session) == []
        producer.commit_transaction(120)
        until(lambda: take(session) == 1, 30, "the record after the transaction arrives")
        session.close()
