"""The bounds of partition logs and the offsets a group has committed, read from outside the group.

The metadata of a commit is read by :mod:`zimage_stream.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, ConnectionStatus, create_admin, partitions_of
from zimage_stream.settings import KafkaSettings

_EARLIEST = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Where the log of one partition begins and ends.

    Attributes:
        low: the log start offset.
        end: the last stable offset, up to which committed records can be read.
        high: the high watermark. Above ``end`` while a producer has a transaction open.
    """

    low: int
    end: int
    high: int


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """A group's committed offset in one partition, and the bounds of its log, ``None`` without a leader."""

    committed: TopicPartition
    log: LogBounds | None


class OffsetClient:
    """Queries the brokers for offsets.

    All methods raise BrokerUnavailableError if no broker answers.
    """

    def __init__(self, kafka: KafkaSettings) -> None:
        self._connection = ConnectionStatus(kafka)
        self._admin = create_admin(kafka, self._connection)

    def partitions(self, topic: str) -> dict[int, bool]:
        """The partitions of a topic, and whether each has a leader.

        Raises:
            TopicMissingError: the topic does not exist.
        """
        found = partitions_of(self._admin, self._connection, topic)
        return {number: each.leader >= 0 for number, each in sorted(found.items())}

    def log_bounds(self, topic: str) -> dict[int, LogBounds | None]:
        """The bounds of each partition's log; ``None`` for partitions without a leader.

        Raises:
            TopicMissingError: the topic does not exist.
        """
        partitions = self.partitions(topic)
        led = [number for number, has_leader in partitions.items() if has_leader]
        # The high watermark first: a record committed between the two calls is not behind a transaction.
        high = self._list(topic, led, _LATEST, IsolationLevel.READ_UNCOMMITTED)
        end = self._list(topic, led, _LATEST, IsolationLevel.READ_COMMITTED)
        low = self._list(topic, led, _EARLIEST, IsolationLevel.READ_UNCOMMITTED)
        logs = {
            number: LogBounds(low[number], end[number], max(high[number], end[number]))
            for number in high.keys() & end.keys() & low.keys()
        }
        return {number: logs.get(number) for number in partitions}

    def committed(self, topic: str, group_id: str, partitions: Collection[int]) -> list[TopicPartition]:
        """The group's committed offsets. Does not wait for commits in transactions that are still open."""
        places = [TopicPartition(topic, number) for number in partitions]
        asked = ConsumerGroupTopicPartitions(group_id, places)
        try:
            answer = self._admin.list_consumer_group_offsets([asked], request_timeout=CONTACT_TIMEOUT_S)
            found: Sequence[TopicPartition] = answer[group_id].result().topic_partitions
        except KafkaException as error:
            raise self._connection.explain(error.args[0]) from error
        for each in found:
            if each.error is not None:
                raise self._connection.explain(each.error)
        return sorted(found, key=lambda each: each.partition)

    def _list(self, topic: str, partitions: Collection[int], spec: Any, isolation: Any) -> Mapping[int, int]:
        """List offsets by partition, omitting partitions whose leader has just changed: for those the client
        returns its own "no offset" value."""
        if not partitions:
            return {}
        places = {TopicPartition(topic, number): spec for number in partitions}
        answers = self._admin.list_offsets(
            places, isolation_level=isolation, request_timeout=CONTACT_TIMEOUT_S
        )
        try:
            found = {place.partition: answer.result().offset for place, answer in answers.items()}
        except KafkaException as error:
            raise self._connection.explain(error.args[0]) from error
        return {number: offset for number, offset in found.items() if offset >= 0}


def group_offsets(kafka: KafkaSettings, topic: str, group_id: str) -> list[GroupOffset]:
    """The group's committed offset and the log bounds of each partition of a topic.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: the topic does not exist.
    """
    client = OffsetClient(kafka)
    numbers = client.partitions(topic)
    # Committed offsets first: a log end that is read later cannot lie below them.
    committed = client.committed(topic, group_id, numbers)
    logs = client.log_bounds(topic)
    return [GroupOffset(each, logs.get(each.partition)) for each in committed]
