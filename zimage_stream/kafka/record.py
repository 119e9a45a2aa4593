"""A record of a topic, as all readers have it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from zimage_stream.events.headers import Header
from zimage_stream.events.image_result import Source

_HEADERS = operator.methodcaller("headers")
"""Asks the client for a record's headers. Where a name is no UTF-8 it sets an error, and returns a list all
the same, with null pointers for names. A call from Python code that runs often does not look at such an
error, and touching a name ends the process; a call from C does."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Record:
    """A consumed record, kept whole: a dead letter gives it back byte for byte.

    Attributes:
        headers: in the order they were sent. What the client does not show is not there: of a name what
            follows a NUL, and all of them where they are more than 100,000.
        timestamp: when it was written; when it was read, where it does not say or says no time.
        headers_lost: why its headers could not be read, if it has some that could not.
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
        """The record's place, as results echo it."""
        return Source(topic=self.topic, partition=self.partition, offset=self.offset)


def record_of(message: Message) -> Record:
    """The record in a message that a consumer delivered, whatever it holds. To be asked for once."""
    delivered: Any = message  # the stubs allow for messages that lie nowhere
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
    """The headers, or why they cannot be read."""
    try:
        sent: Any = _HEADERS(message) or ()  # pairs, in order; the stubs allow for more
    except (SystemError, UnicodeDecodeError) as error:
        # Asked again, the client would hand out names that are null pointers.
        return (), f"a header's name is no UTF-8: {error.__cause__ or error}"
    headers = ((name, value.encode() if isinstance(value, str) else value) for name, value in sent)
    return tuple(headers), None


def _written_at(message: Message) -> datetime:
    """When it was written, as its timestamp says; now, where that is no time.

    A timestamp is any number of 64 bits. Below 0, and after the year 9999 (microseconds, most often), it
    says nothing.
    """
    kind, milliseconds = message.timestamp()
    if kind != TIMESTAMP_NOT_AVAILABLE and milliseconds >= 0:
        try:
            return _EPOCH + timedelta(milliseconds=milliseconds)
        except OverflowError:
            pass
    return datetime.now(UTC)
