"""Publishing cancellations: each goes to the partition of the same number as its request's record."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from zimage_stream import forks
from zimage_stream.errors import BrokerUnavailableError, SubmitError, TopicMissingError
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import cancellation_headers
from zimage_stream.kafka.clients import Trouble, create_producer, partitions_of
from zimage_stream.settings import KafkaSettings

ACCEPT_TIMEOUT_S = 30.0
AT_ONCE = 1_000
"""Cancellations in flight; librdkafka's queue holds more."""


class Canceller:
    """Sends cancellations. Thread-safe; connects at the first call.

    Args:
        topic: of cancellations.
        source: ``ce_source`` of what it sends.
    """

    def __init__(self, settings: KafkaSettings, topic: str, codec: Codec, source: str) -> None:
        self._settings = settings
        self._topic = topic
        self._codec = codec
        self._source = source
        self._trouble = Trouble(settings)
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        forks.follow(self)

    def after_fork(self) -> None:
        """A child sends with a producer of its own."""
        self._lock = threading.Lock()
        forks.leave(self._producer)
        self._producer = None

    def send(self, cancellations: Sequence[Cancellation]) -> None:
        """Publish these, and return once the brokers have them safely.

        Raises:
            BrokerUnavailableError: no broker answers, or acknowledged all of them in time.
            TopicMissingError: there is no cancellations topic, or it has too few partitions.
            SubmitError: the brokers refuse one of them.
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable.
        """
        with self._lock:
            producer = self._connected(max((each.source.partition for each in cancellations), default=0))
            for start in range(0, len(cancellations), AT_ONCE):
                self._send(producer, cancellations[start : start + AT_ONCE])

    def close(self) -> None:
        """Release the connections."""
        with self._lock:
            self._producer = None

    def _connected(self, highest_partition: int) -> Producer:
        producer = self._producer
        if producer is None:
            producer = create_producer(self._settings, self._trouble, delivery_timeout_s=ACCEPT_TIMEOUT_S)
        count = len(partitions_of(producer, self._trouble, self._topic))
        if highest_partition >= count:
            reason = f"it has {count} partitions, and a request lies in partition {highest_partition}"
            raise TopicMissingError(self._topic, reason)
        self._producer = producer
        return producer

    def _send(self, producer: Producer, cancellations: Sequence[Cancellation]) -> None:
        refused: list[tuple[Cancellation, KafkaError]] = []
        for each in cancellations:

            def delivered(error: KafkaError | None, _: Message, each: Cancellation = each) -> None:
                if error is not None:
                    refused.append((each, error))

            try:
                producer.produce(
                    self._topic,
                    key=each.request_id.encode(),
                    value=self._codec.encode_cancellation(each, self._topic),
                    headers=list(cancellation_headers(each, self._source)),
                    partition=each.source.partition,
                    on_delivery=delivered,
                )
            except KafkaException as error:
                refused.append((each, error.args[0]))
        left = producer.flush(ACCEPT_TIMEOUT_S + 1.0)
        if refused or left:
            # An idempotent producer that lost count is of no more use; the next call makes a new one.
            self._producer = None
        if left or any(problem.code() == KafkaError._MSG_TIMED_OUT for _, problem in refused):
            silence = BrokerUnavailableError("no broker acknowledged the cancellation in time")
            raise self._trouble.error or silence
        for cancellation, problem in refused[:1]:
            raise SubmitError(cancellation.request_id, f"its cancellation was refused: {problem.str()}")
        self._trouble.clear()
