"""The age of the oldest unresolved request."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from confluent_kafka import OFFSET_INVALID

from zimage_stream.kafka.offsets import group_offsets
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.settings import KafkaSettings


def oldest_unresolved(kafka: KafkaSettings, topic: str, group_id: str) -> timedelta | None:
    """Age of the oldest record at or above a group's committed offsets; ``None`` if there is none.

    Partitions without a leader are ignored.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: the topic does not exist.
    """
    bases = {}
    for each in group_offsets(kafka, topic, group_id):
        if each.log is None:
            continue
        base = each.log.low if each.committed.offset == OFFSET_INVALID else each.committed.offset
        if base < each.log.end:
            bases[each.committed.partition] = base
    written = first_written(kafka, topic, bases)
    return datetime.now(UTC) - min(written.values()) if written else None


def first_written(kafka: KafkaSettings, topic: str, starts: Mapping[int, int]) -> dict[int, datetime]:
    """When the first record at or above each of these offsets was written.

    Partitions with no record there, or only transaction markers, are left out.

    Raises as :func:`oldest_unresolved`.
    """
    return {number: record.timestamp for number, record in first_records(kafka, topic, starts).items()}


def first_records(
    kafka: KafkaSettings, topic: str, starts: Mapping[int, int], *, uncommitted: bool = False
) -> dict[int, Record]:
    """The first record at or above each of these offsets, for the partitions that have one.

    Args:
        starts: offsets by partition number.
        uncommitted: include records of open and aborted transactions.

    Raises as :func:`oldest_unresolved`.
    """
    found: dict[int, Record] = {}
    if not starts:
        return found
    with TopicReader(kafka, topic, uncommitted=uncommitted) as reader:
        reader.start(starts)
        for record in reader.read_to_end():
            found.setdefault(record.partition, record)
            if not reader.unfinished - found.keys():
                break
    return found
