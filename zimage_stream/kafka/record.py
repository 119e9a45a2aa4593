"""A consumed record, as all readers of topics represent it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from zimage_stream.events.headers import Header
from zimage_stream.events.image_result import Source

_HEADERS = operator.methodcaller("headers")
"""Calls ``message.headers()`` from C. If a header's name is not UTF-8, the client sets an exception but still
returns a list, with null pointers for names. CPython's optimised bytecode does not check for that exception,
and touching such a name crashes the process; a call from C does check."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Record:
    """A consumed record, complete: a dead letter reproduces it byte for byte.

    Attributes:
        headers: in the order in which they were sent. The client hides the part of a name that follows a NUL,
            and all headers of a record with more than 100,000.
        timestamp: when the record was written, or when it was read if its timestamp is absent or invalid.
        headers_lost: why the headers could not be read; ``None`` if they could.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]
    timestamp: datetime
    headers_lost: str | None = None

    @property
    def source(self) -> Source:
        """Topic, partition and offset, as the result echoes them."""
        return Source(topic=self.topic, partition=self.partition, offset=self.offset)


def record_of(message: Message) -> Record:
    """Convert a message from a consumer, whatever it contains. Call it once per message."""
    delivered: Any = message  # the stubs allow for messages without a topic and offset
    headers, lost = _headers_of(message)
    return Record(
        delivered.topic(),
        delivered.partition(),
        delivered.offset(),
        delivered.key(),
        delivered.value(),
        headers,
        _written_at(message),
        lost,
    )


def _headers_of(message: Message) -> tuple[tuple[Header, ...], str | None]:
    """Return the headers, or the reason why they cannot be read."""
    try:
        sent: Any = _HEADERS(message) or ()  # pairs, in order; the stubs allow for more
    except (SystemError, UnicodeDecodeError) as error:
        # A second call would return names that are null pointers.
        return (), f"a header's name is not UTF-8: {error.__cause__ or error}"
    headers = ((name, value.encode() if isinstance(value, str) else value) for name, value in sent)
    return tuple(headers), None


def _written_at(message: Message) -> datetime:
    """Return the message's timestamp, or the current time if that is absent or invalid.

    A timestamp can be any 64-bit number. Values below 0 and after the year 9999 (usually microseconds) are
    invalid.
    """
    kind, milliseconds = message.timestamp()
    if kind != TIMESTAMP_NOT_AVAILABLE and milliseconds >= 0:
        try:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            pass
    return datetime.now(UTC)
