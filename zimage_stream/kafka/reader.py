"""Reading a topic without a group: from offsets of one's own choosing, committed records only."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from zimage_stream.errors import (
    BrokerUnavailableError,
    RegistryUnavailableError,
    TopicMissingError,
    WireError,
    ZImageError,
)
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import Headers
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.registry import SchemaUnavailableError
from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, Trouble, metadata_of, reader_config
from zimage_stream.settings import KafkaSettings

log = logging.getLogger(__name__)

_NOT_TO_BE_READ = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_AUTHORIZATION_FAILED)
_NO_LEADER_YET = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
"""As for a moment after a topic was made, or while a broker restarts."""

_HEADERS = operator.methodcaller("headers")
"""Asks the client for a record's headers. Where a name is no UTF-8 it sets an error, and returns a list all
the same, with null pointers for names. A call from Python code that runs often does not look at such an
error, and touching a name ends the process; a call from C does."""
CLOSE_TIMEOUT_S = 5.0
NEW_PARTITIONS_S = 5.0
"""How soon a partition is read that was added to the topic."""
_LOOK_TIMEOUT_S = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Offsets = Mapping[int, int]
"""Partition number to the offset of the next record."""


class UnreadableHeadersError(ZImageError):
    """The client cannot say what a record's headers are: one of their names is no UTF-8."""


def record_headers(message: Message) -> Headers:
    """A record's headers in the order they were sent, as bytes. To be asked for once.

    What the client does not show is not there: of a name what follows a NUL, and all of them where they
    are more than 100,000.

    Raises:
        UnreadableHeadersError: there are some, and they cannot be read.
    """
    try:
        sent: Any = _HEADERS(message) or ()  # pairs, in order; the stubs allow for more
    except (SystemError, UnicodeDecodeError) as error:
        # Asked again, the client would hand out names that are null pointers.
        raise UnreadableHeadersError(f"a header's name is no UTF-8: {error.__cause__ or error}") from error
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in sent]


def record_time(message: Message) -> datetime:
    """When a record was written, as its timestamp says; now, where that is no time.

    A timestamp is any number of 64 bits. Below 0, and after the year 9999 (microseconds, most often), it
    says nothing, and the time when somebody reads it stands for it.
    """
    kind, milliseconds = message.timestamp()
    if kind != TIMESTAMP_NOT_AVAILABLE and milliseconds >= 0:
        try:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            pass
    return datetime.now(UTC)


class TopicReader:
    """One reader of one topic. Not thread-safe, and a context manager.

    Nothing is read before :meth:`start`.

    Args:
        uncommitted: read records of transactions that are open or were aborted, too.
    """

    def __init__(self, settings: KafkaSettings, topic: str, *, uncommitted: bool = False) -> None:
        self._topic = topic
        self._trouble = Trouble(settings)
        self._positions: dict[int, int] = {}
        self._unfinished: set[int] = set()
        self._look_at = float("inf")
        config = {**reader_config(settings), "enable.partition.eof": True, "error_cb": self._trouble}
        if uncommitted:
            config["isolation.level"] = "read_uncommitted"
        self._consumer = Consumer(config)

    def __enter__(self) -> TopicReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end_offsets(self) -> dict[int, int]:
        """Where the next record of each partition will be.

        Raises:
            BrokerUnavailableError: no broker answers.
            TopicMissingError: there is no such topic.
        """
        return {partition: self._end_of(partition) for partition in self._partitions()}

    def _end_of(self, partition: int) -> int:
        place, deadline = TopicPartition(self._topic, partition), time.monotonic() + CONTACT_TIMEOUT_S
        while True:
            try:
                return int(self._consumer.get_watermark_offsets(place, timeout=CONTACT_TIMEOUT_S)[1])
            except KafkaException as error:
                problem = error.args[0]
                if problem.code() not in _NO_LEADER_YET or time.monotonic() > deadline:
                    raise self._trouble.explain(problem) from error
            time.sleep(0.1)

    def start(self, offsets: Offsets | None = None, *, growing: bool = False) -> None:
        """Read from these offsets on; ``None``: from the beginning. Raises as :meth:`end_offsets`.

        Args:
            growing: partitions that are not among them were added since, or may be while it reads; they are
                read from their beginning.
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
        """Whether every partition has been read to its end at some moment since :meth:`start`."""
        return not self._unfinished

    @property
    def unfinished(self) -> frozenset[int]:
        """Partitions whose end has not been reached since :meth:`start`."""
        return frozenset(self._unfinished)

    @property
    def trouble(self) -> BrokerUnavailableError | None:
        """Set while no broker has answered since the last record."""
        return self._trouble.error

    def poll(self, timeout_s: float) -> Message | None:
        """The next record, or ``None`` after ``timeout_s`` seconds or at the end of a partition.

        Raises:
            BrokerUnavailableError: reading cannot go on; transient trouble is waited out.
            TopicMissingError: the topic was deleted, or these credentials may not read it.
        """
        if time.monotonic() >= self._look_at:
            self._look_for_new()
        message = self._consumer.poll(timeout_s)
        if message is None:
            return None
        error = message.error()
        partition, offset = message.partition(), message.offset()
        if error is None:
            assert partition is not None
            assert offset is not None
            self._trouble.clear()
            self._positions[partition] = offset + 1
            return message
        if error.code() == KafkaError._PARTITION_EOF:
            self._trouble.clear()
            self._unfinished.discard(-1 if partition is None else partition)
            return None
        if error.code() in _NOT_TO_BE_READ:
            raise TopicMissingError(self._topic, error.str())
        if error.fatal():
            raise self._trouble.explain(error)
        log.warning("reading %s: %s", self._topic, error.str())
        return None

    def close(self) -> None:
        """Release the connections."""
        # librdkafka may wait here for a coordinator, without end and deaf to Ctrl-C. There is no group
        # to leave and nothing to commit, so it can be left to it.
        closing = threading.Thread(target=self._consumer.close, name="zimage-reader-close", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)

    def _look_for_new(self) -> None:
        """Begin with the partitions that the topic has got meanwhile."""
        self._look_at = time.monotonic() + NEW_PARTITIONS_S
        try:
            found = self._consumer.list_topics(self._topic, timeout=_LOOK_TIMEOUT_S).topics[self._topic]
        except KafkaException as error:
            log.debug("whether %s has new partitions is not known: %s", self._topic, error.args[0].str())
            return
        new = sorted(found.partitions.keys() - self._positions.keys())
        if new:
            self._positions.update(dict.fromkeys(new, 0))
            self._unfinished.update(new)
            places = [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in new]
            self._consumer.incremental_assign(places)

    def _partitions(self) -> list[int]:
        found = metadata_of(self._consumer, self._trouble, self._topic).topics[self._topic]
        if found.error is not None:
            raise TopicMissingError(self._topic, found.error.str())
        return sorted(found.partitions)


class ResultReader:
    """Reads results; a record that is not one is skipped with a warning. Not thread-safe.

    Args:
        patient: wait for the schema of a single record, for which the registry has no answer; else skip it.
    """

    def __init__(self, settings: KafkaSettings, topic: str, codec: Codec, *, patient: bool = True) -> None:
        self._patient = patient
        self.topic = TopicReader(settings, topic)
        self._codec = codec
        self._waiting: Message | None = None

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self.topic.close()

    def poll(self, timeout_s: float) -> ImageResult | None:
        """The next result, or ``None`` if none came within ``timeout_s`` seconds.

        Raises:
            BrokerUnavailableError, TopicMissingError: reading cannot go on.
            RegistryUnavailableError: the schema cannot be had now; the next call tries the same record.
        """
        message = self._waiting or self.topic.poll(timeout_s)
        self._waiting = None
        if message is None:
            return None
        try:
            return self._codec.decode_result(message.value())
        except RegistryUnavailableError as error:
            if self._patient or not isinstance(error, SchemaUnavailableError):
                self._waiting = message
                raise
            problem: Exception = error
        except WireError as error:
            problem = error
        log.warning(
            "a record of %s that is no result is skipped (partition %s, offset %s): %s",
            message.topic(),
            message.partition(),
            message.offset(),
            problem,
        )
        return None
