"""How long the oldest request has been waiting."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, TopicPartition

from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, Trouble, metadata_of, reader_config
from zimage_stream.kafka.reader import TopicMissingError, TopicReader, record_time
from zimage_stream.settings import KafkaSettings

_POLL_S = 0.2


def oldest_unresolved(kafka: KafkaSettings, topic: str, group_id: str) -> timedelta | None:
    """Age of the record at the lowest offset that a group has not passed; ``None`` where there is none.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: there is no such topic.
    """
    bases = {}
    for committed, low, end in read_committed_offsets(kafka, topic, group_id):
        base = low if committed.offset == OFFSET_INVALID else committed.offset
        if base < end:
            bases[committed.partition] = base
    written = first_written(kafka, topic, bases)
    return datetime.now(UTC) - min(written.values()) if written else None


def read_committed_offsets(
    kafka: KafkaSettings, topic: str, group_id: str
) -> list[tuple[TopicPartition, int, int]]:
    """For each partition what the group committed, and where the log begins and ends; asked by somebody
    who is no member. Raises as :func:`oldest_unresolved`."""
    trouble = Trouble(kafka)
    consumer = Consumer({**reader_config(kafka), "group.id": group_id, "error_cb": trouble})
    try:
        found = metadata_of(consumer, trouble, topic).topics[topic]
        if found.error is not None:
            raise TopicMissingError(topic, found.error.str())
        asked = [TopicPartition(topic, number) for number in sorted(found.partitions)]
        committed = consumer.committed(asked, timeout=CONTACT_TIMEOUT_S)
        marks = [consumer.get_watermark_offsets(each, timeout=CONTACT_TIMEOUT_S) for each in asked]
    except KafkaException as error:
        raise trouble.explain(error.args[0]) from error
    finally:
        consumer.close()
    return [(each, low, end) for each, (low, end) in zip(committed, marks, strict=True)]


def first_written(kafka: KafkaSettings, topic: str, starts: Mapping[int, int]) -> dict[int, datetime]:
    """When the first record from each of these offsets on was written. A partition that has none there,
    but markers of transactions at most, is left out. Raises as :func:`oldest_unresolved`."""
    found: dict[int, datetime] = {}
    if not starts:
        return found
    with TopicReader(kafka, topic) as reader:
        reader.start(starts)
        while reader.unfinished - found.keys():
            message = reader.poll(_POLL_S)
            if message is None:
                if reader.trouble is not None:
                    raise reader.trouble
                continue
            number = message.partition()
            assert number is not None
            found.setdefault(number, record_time(message))
    return found
