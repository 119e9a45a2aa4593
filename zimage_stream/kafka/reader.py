"""Readers of topics without a consumer group: from chosen offsets, by default committed records only."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from zimage_stream.errors import (
    BrokerUnavailableError,
    RegistryUnavailableError,
    TopicMissingError,
    WireError,
)
from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, ConnectionStatus, partitions_of, reader_config
from zimage_stream.kafka.record import Record, record_of
from zimage_stream.settings import KafkaSettings

log = logging.getLogger(__name__)

_NOT_TO_BE_READ = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED)
_NO_LEADER_YET = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_PARTITION,
)
"""Errors for a partition that exists, shortly after its topic was created or while a broker restarts."""

POLL_S = 0.2
"""Length of one poll within a longer wait, in seconds: how quickly a reader notices that it must stop."""
CLOSE_TIMEOUT_S = 5.0
NEW_PARTITIONS_S = 5.0
"""Interval of the check for partitions that were added to the topic, in seconds."""
_LOOK_TIMEOUT_S = 1.0

PartitionOffsets = Mapping[int, int]
"""Offset of the next record by partition number."""


class TopicReader:
    """A reader of one topic. Not thread-safe, and a context manager.

    It reads nothing before :meth:`start`.

    Args:
        uncommitted: also read records of open and aborted transactions.
    """

    def __init__(self, settings: KafkaSettings, topic: str, *, uncommitted: bool = False) -> None:
        self._topic = topic
        self._connection = ConnectionStatus(settings)
        self._positions: dict[int, int] = {}
        self._unfinished: set[int] = set()
        self._look_at = float("inf")
        config = {**reader_config(settings), "enable.partition.eof": True, "error_cb": self._connection}
        if uncommitted:
            config["isolation.level"] = "read_uncommitted"
        self._consumer = Consumer(config)

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end_offsets(self) -> dict[int, int]:
        """The high watermark of each partition.

        Raises:
            BrokerUnavailableError: no broker answers.
            TopicMissingError: the topic does not exist.
        """
        return {partition: self._end_of(partition) for partition in self._partitions()}

    def offsets_at(self, at: datetime, partitions: Collection[int]) -> dict[int, int]:
        """The offset of each partition's first record written at or after a time.

        For a partition without such a record, it is the end of the partition or -1.

        Raises:
            BrokerUnavailableError: no broker answers.
        """
        milliseconds = round(at.timestamp() * 1000)
        asked = [TopicPartition(self._topic, number, milliseconds) for number in partitions]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=CONTACT_TIMEOUT_S)
        except KafkaException as error:
            raise self._connection.explain(error.args[0]) from error
        return {each.partition: each.offset for each in found}

    def _end_of(self, partition: int) -> int:
        place, deadline = TopicPartition(self._topic, partition), time.monotonic() + CONTACT_TIMEOUT_S
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(place, timeout=CONTACT_TIMEOUT_S)[1])
            except KafkaException as error:
                problem = error.args[0]
                if problem.code() not in _NO_LEADER_YET or time.monotonic() > deadline:
                    raise self._connection.explain(problem) from error
            time.sleep(0.1)

    def start(self, offsets: PartitionOffsets | None = None, *, growing: bool = False) -> None:
        """Start reading. Raises as :meth:`end_offsets`.

        Args:
            offsets: where to start, by partition; ``None`` means at the beginning.
            growing: also read partitions that are not in ``offsets``, now or once they are added, from their
                beginning.
        """
        if offsets is None:
            offsets = dict.fromkeys(self._partitions(), OFFSET_BEGINNING)
        self._positions = dict(offsets)
        self._unfinished = set(offsets)
        self._consumer.assign([TopicPartition(self._topic, *at) for at in offsets.items()])
        if growing:
            self._look_for_new()

    @property
    def positions(self) -> dict[int, int]:
        """The offset after the last record that :meth:`poll` returned, per partition."""
        return dict(self._positions)

    @property
    def caught_up(self) -> bool:
        """Whether every partition has been read to its end at least once since :meth:`start`."""
        return not self._unfinished

    @property
    def unfinished(self) -> frozenset[int]:
        """Partitions whose end has not been reached since :meth:`start`."""
        return frozenset(self._unfinished)

    @property
    def connection_error(self) -> BrokerUnavailableError | None:
        """The current connection error, or ``None`` if a broker has answered since."""
        return self._connection.error

    def read_to_end(self, ends: PartitionOffsets | None = None) -> Iterator[Record]:
        """Yield records from the current positions until every partition has been read to its end.

        Args:
            ends: end offset by partition. By default the end at the time of reading, so that records that
                arrive meanwhile are included.

        Raises:
            BrokerUnavailableError: no broker answers.
            TopicMissingError: as :meth:`poll`.
        """
        ends = ends or {}
        while not self.caught_up:
            record = self.poll(POLL_S)
            if record is not None:
                end = ends.get(record.partition, math.inf)
                if record.offset + 1 >= end:
                    self._unfinished.discard(record.partition)
                if record.offset < end:
                    yield record
            elif self.connection_error is not None:
                raise self.connection_error

    def poll(self, timeout_s: float) -> Record | None:
        """Return the next record, or ``None`` after ``timeout_s`` seconds or at the end of a partition.

        Raises:
            BrokerUnavailableError: reading cannot continue. Transient errors are retried.
            TopicMissingError: the topic was deleted, or these credentials may not read it.
        """
        if time.monotonic() >= self._look_at:
            self._look_for_new()
        message = self._consumer.poll(timeout_s)
        if message is None:
            return None
        error = message.error()
        if error is None:
            self._connection.clear()
            record = record_of(message)
            self._positions[record.partition] = record.offset + 1
            return record
        if error.code() == KafkaError._PARTITION_EOF:
            self._connection.clear()
            self._unfinished -= {message.partition()}
            return None
        if error.code() in _NOT_TO_BE_READ:
            raise TopicMissingError(self._topic, error.str())
        if error.fatal():
            raise self._connection.explain(error)
        log.warning("reading %s: %s", self._topic, error.str())
        return None

    def close(self) -> None:
        """Release the connections."""
        # librdkafka may wait for a coordinator indefinitely here, and ignores Ctrl-C. There is no group to
        # leave and nothing to commit, so the thread may be abandoned.
        closing = threading.Thread(target=self._consumer.close, name="zimage-reader-close", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)

    def _look_for_new(self) -> None:
        """Start reading partitions that have been added to the topic."""
        self._look_at = time.monotonic() + NEW_PARTITIONS_S
        try:
            found = self._consumer.list_topics(self._topic, timeout=_LOOK_TIMEOUT_S).topics[self._topic]
        except KafkaException as error:
            log.debug("cannot check %s for new partitions: %s", self._topic, error.args[0].str())
            return
        new = sorted(found.partitions.keys() - self._positions.keys())
        if new:
            self._positions.update(dict.fromkeys(new, 0))
            self._unfinished.update(new)
            places = [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in new]
            self._consumer.incremental_assign(places)

    def _partitions(self) -> list[int]:
        return sorted(partitions_of(self._consumer, self._connection, self._topic))


class ResultReader:
    """Reads results, and skips any other record with a warning. Not thread-safe.

    Args:
        patient: whether to wait if the registry answers, but not for one record's schema. Otherwise that
            record is skipped.
    """

    def __init__(self, settings: KafkaSettings, topic: str, codec: Codec, *, patient: bool = True) -> None:
        self._patient = patient
        self.topic = TopicReader(settings, topic)
        self._codec = codec
        self._waiting: Record | None = None

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self.topic.close()

    def poll(self, timeout_s: float) -> ImageResult | None:
        """Return the next result, or ``None`` if none arrived within ``timeout_s`` seconds.

        Raises:
            BrokerUnavailableError, TopicMissingError: reading cannot continue.
            RegistryUnavailableError: the schema is unavailable; the next call retries the same record.
        """
        record = self._waiting or self.topic.poll(timeout_s)
        return None if record is None else self._result_in(record)

    def read_to_end(self) -> Iterator[ImageResult]:
        """Yield results from the current positions until every partition has been read to its end.

        Raises:
            BrokerUnavailableError: no broker answers.
            TopicMissingError, RegistryUnavailableError: as :meth:`poll`.
        """
        for record in self.topic.read_to_end():
            result = self._result_in(record)
            if result is not None:
                yield result

    def _result_in(self, record: Record) -> ImageResult | None:
        self._waiting = None
        try:
            return self._codec.decode_result(record.value)
        except RegistryUnavailableError as error:
            if self._patient or not isinstance(error, SchemaUnavailableError):
                self._waiting = record
                raise
            problem: Exception = error
        except WireError as error:
            problem = error
        log.warning(
            "skipping a record of %s that is not a result (partition %s, offset %s): %s",
            record.topic,
            record.partition,
            record.offset,
            problem,
        )
        return None
