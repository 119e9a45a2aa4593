"""Reading of progress. It may be lost anyway, so nothing about it is an error for whoever reads it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import datetime

from zimage_stream.deadline import Deadline
from zimage_stream.errors import (
    BrokerUnavailableError,
    RegistryUnavailableError,
    TopicMissingError,
    WireError,
)
from zimage_stream.events.codec import Codec
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import KafkaSettings

log = logging.getLogger(__name__)


class ProgressReader:
    """Reads progress. Where the topic is missing or cannot be read, there is none. Not thread-safe.

    Args:
        since: where to start, by the time at which workers wrote the events; by default where the topic ends.
    """

    def __init__(
        self, settings: KafkaSettings, topic: str, codec: Codec, since: datetime | None = None
    ) -> None:
        self._topic = topic
        self._codec = codec
        self._reader: TopicReader | None = TopicReader(settings, topic, uncommitted=True)
        try:
            self._start(self._reader, since)
        except (BrokerUnavailableError, TopicMissingError) as error:
            self._end(error)

    def __enter__(self) -> ProgressReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def reads(self) -> bool:
        """Whether there may be progress: the topic is there, and can be read."""
        return self._reader is not None

    def poll(self, timeout_s: float, request_ids: Collection[str] | None = None) -> Progress | None:
        """Return the next event, or ``None`` after ``timeout_s`` seconds, at the end of a partition, or if
        there will be none.

        Args:
            request_ids: only of these requests; other records are not even decoded.
        """
        deadline = Deadline(timeout_s)
        while self._reader is not None:
            try:
                record = self._reader.poll(deadline.within(timeout_s))
            except (BrokerUnavailableError, TopicMissingError) as error:
                self._end(error)
                return None
            if record is None:
                return None
            if request_ids is None or _text(record.key) in request_ids:
                event = self._event_in(record.value)
                if event is not None:
                    return event
            if deadline.passed:
                return None
        return None

    def _start(self, reader: TopicReader, since: datetime | None) -> None:
        offsets = reader.end_offsets()
        if since is not None:
            found = reader.offsets_at(since, list(offsets))
            # Without a record that is as late, the partition is read from its end.
            offsets = {
                number: end if found.get(number, -1) < 0 else found[number] for number, end in offsets.items()
            }
        reader.start(offsets, growing=True)

    def _end(self, error: Exception) -> None:
        log.info("progress cannot be read: %s", error)
        self.close()

    def _event_in(self, value: bytes | None) -> Progress | None:
        try:
            return self._codec.decode_progress(value)
        except (RegistryUnavailableError, WireError) as error:
            log.debug("skipping a record of %s: %s", self._topic, error)
            return None


def _text(key: bytes | None) -> str | None:
    return None if key is None else key.decode(errors="replace")
