"""What a commit says about a partition, and what follows from the rate of results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import OFFSET_INVALID, TopicPartition

from zimage_stream import ImageResult, Source, Status
from zimage_stream.checkpoint import Checkpoint, Mark
from zimage_stream.cli.status.backlog import Partition, partition_of
from zimage_stream.cli.status.rate import Rate
from zimage_stream.cli.status.where import Phase, phase_of, unresolved_before
from zimage_stream.kafka.offsets import LogBounds

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HELD = Checkpoint(
    100,
    resolved=0b11010,
    marks={102: Mark(attempts=1, open=True), 105: Mark(suspect=True), 106: Mark(attempts=1)},
)


def committed(offset: int, metadata: str = "") -> TopicPartition:
    return TopicPartition("requests", 7, offset, metadata)


def test_resolved_offsets_above_the_base_are_not_counted() -> None:
    partition = partition_of(committed(100, HELD.encode()), LogBounds(0, 110, 110))
    assert partition == Partition(7, HELD, LogBounds(0, 110, 110))
    waiting = Partition(7, HELD, LogBounds(0, 110, 200), oldest_at=NOW)
    assert (waiting.unresolved, waiting.started, waiting.suspects) == (7, 1, 1)
    assert partition.unresolved == 0, "no record was found above the base, so there is none"


def test_a_group_without_commits_begins_where_the_log_does() -> None:
    partition = partition_of(committed(OFFSET_INVALID), LogBounds(20, 30, 30))
    assert (partition.checkpoint, partition.lost) == (Checkpoint(20), 0)


def test_records_deleted_before_they_were_served_are_lost() -> None:
    assert partition_of(committed(100, HELD.encode()), LogBounds(103, 110, 110)).lost == 2
    assert partition_of(committed(100), LogBounds(103, 110, 110)).lost == 3
    far = 10**15
    assert partition_of(committed(100, HELD.encode()), LogBounds(far, far, far)).lost == far - 100 - 3


def test_a_commit_past_the_end_of_the_log_is_reported() -> None:
    assert partition_of(committed(100), LogBounds(0, 100, 100)).past_end == 0
    assert partition_of(committed(100), LogBounds(0, 10, 12)).past_end == 88


def test_a_partition_without_a_leader_is_unknown_and_remarkable() -> None:
    for offset in (100, OFFSET_INVALID):
        partition = partition_of(committed(offset), None)
        assert (partition.unresolved, partition.lost, partition.past_end) == (0, 0, 0)
        assert partition.is_remarkable
    assert not partition_of(committed(100), LogBounds(0, 100, 100)).is_remarkable


@pytest.mark.parametrize("metadata", ["nonsense", HELD.encode()])
def test_foreign_metadata_is_reported_and_not_used(metadata: str) -> None:
    partition = partition_of(committed(90, metadata), LogBounds(0, 110, 110))
    assert partition.checkpoint == Checkpoint(90)
    assert partition.damaged


def test_the_phase_of_a_request() -> None:
    assert [phase_of(HELD, offset) for offset in (100, 102, 105, 106)] == [
        Phase.WAITING,
        Phase.RUNNING,
        Phase.SUSPECT,
        Phase.WAITING,
    ]
    assert [unresolved_before(HELD, offset) for offset in (100, 102, 105, 110)] == [0, 1, 2, 7]


def result(age_s: float) -> ImageResult:
    at = NOW - timedelta(seconds=age_s)
    source = Source(topic="requests", partition=0, offset=0)
    return ImageResult(
        request_id="r", status=Status.SUCCEEDED, source=source, requested_at=at, completed_at=at
    )


def test_a_rate_counts_from_the_first_result() -> None:
    rate = Rate()
    assert (rate.per_s(NOW), rate.time_to_drain(5, NOW), rate.time_to_drain(0, NOW)) == (
        0.0,
        None,
        timedelta(),
    )
    for age_s in (2.0, 10.0, 6.0, 1.0, 0.5):
        rate.add(result(age_s))
    assert rate.per_s(NOW) == 0.5
    assert rate.time_to_drain(30, NOW) == timedelta(seconds=60)


def test_a_result_dated_in_the_year_1_is_counted() -> None:
    old = datetime(1, 1, 1, tzinfo=UTC)
    rate = Rate()
    source = Source(topic="t", partition=0, offset=0)
    rate.add(
        ImageResult(request_id="r", status=Status.FAILED, source=source, requested_at=old, completed_at=old)
    )
    drain = rate.time_to_drain(10**9, NOW)
    assert drain is not None
    assert drain > timedelta(days=10**6)
