"""From a record to a request that keeps every rule."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from zimage_consumers.image_worker.jobs import Job, Record, now
from zimage_stream.engines.base import MAX_PROMPT_TOKENS
from zimage_stream.errors import RequestError
from zimage_stream.events.codec import Codec
from zimage_stream.events.prompt_request import PromptRequest
from zimage_stream.events.rules import MAX_RECORD_BYTES, Limits, check_request


def record_of(message: Message) -> Record:
    """The consumed record, its headers as they were sent."""
    kind, milliseconds = message.timestamp()
    timestamp = now() if kind == TIMESTAMP_NOT_AVAILABLE else datetime.fromtimestamp(milliseconds / 1000, UTC)
    sent: Any = message.headers() or ()  # pairs, in order; the stubs allow for more
    headers = tuple((name, _bytes(value)) for name, value in sent)
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return Record(
        topic, partition, offset, _bytes(message.key()), _bytes(message.value()), headers, timestamp
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


class Intake:
    """Decodes and checks. Used from the Kafka thread alone."""

    def __init__(self, codec: Codec, limits: Limits, count_tokens: Callable[[str], int | None]) -> None:
        self._codec = codec
        self._limits = limits
        self._count_tokens = count_tokens

    def decode(self, record: Record) -> PromptRequest:
        """The request as it was sent.

        Raises:
            WireError: the record is no request of ours.
            RegistryUnavailableError: nobody can say now; the record is to be held.
        """
        return self._codec.decode_request(record.value)

    def check(self, job: Job) -> None:
        """Decode the job's record into ``job.request`` and check it.

        A request that breaks a rule stays on the job as it was sent, for its result to name.

        Raises:
            WireError, RegistryUnavailableError: as :meth:`decode`.
            RequestError: it breaks a rule.
        """
        request = job.request = self.decode(job.record)
        size = len(job.record.value or b"")
        if size > MAX_RECORD_BYTES:
            raise RequestError("record", f"at most {MAX_RECORD_BYTES:,} bytes", f"{size:,} bytes")

        def count(prompt: str) -> int | None:
            tokens = self._count_tokens(prompt)
            job.tokens = tokens or 0
            return tokens

        job.request = check_request(request, self._limits, count, MAX_PROMPT_TOKENS)
