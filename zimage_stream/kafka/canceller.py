"""Publishing of cancellations, each to the partition of the same number as its request's."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from zimage_stream import forks
from zimage_stream.errors import BrokerUnavailableError, SubmitError
from zimage_stream.events.cancellation import Cancellation
from zimage_stream.events.codec import Codec
from zimage_stream.events.headers import Headers, cancellation_headers
from zimage_stream.kafka.clients import ConnectionStatus, create_producer, partitions_of
from zimage_stream.settings import KafkaSettings

ACCEPT_TIMEOUT_S = 30.0
_AT_ONCE = 1_000
"""Maximum number of cancellations in flight."""
_POLL_S = 0.1

_Refusal = tuple[Cancellation, KafkaError]


class Canceller:
    """Sends cancellations to one topic. Thread-safe; connects at the first call.

    Args:
        source: value of the header ``ce_source`` of the cancellations.
    """

    def __init__(self, settings: KafkaSettings, topic: str, codec: Codec, source: str) -> None:
        self._settings = settings
        self._topic = topic
        self._codec = codec
        self._source = source
        self._connection = ConnectionStatus(settings)
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._partitions = 0
        forks.register(self)

    def after_fork(self) -> None:
        """Start afresh with the child's own producer."""
        self._lock = threading.Lock()
        forks.leak(self._producer)
        self._producer = None

    def send(self, cancellations: Sequence[Cancellation]) -> None:
        """Send cancellations, and return once the brokers have acknowledged all of them.

        A request may be cancelled repeatedly, so a call that failed can be repeated as a whole.

        Raises:
            BrokerUnavailableError: no broker answers, or none acknowledged all of them in time.
            TopicMissingError: the cancellations topic does not exist; nothing was sent.
            SubmitError: a cancellation was not accepted; it is the first such one.
            RegistryUnavailableError, SchemaMissingError: the schema's id is unavailable.
        """
        with self._lock:
            for start in range(0, len(cancellations), _AT_ONCE):
                self._send(cancellations[start : start + _AT_ONCE])

    def close(self) -> None:
        """Release the connections."""
        with self._lock:
            self._producer = None

    def _send(self, cancellations: Sequence[Cancellation]) -> None:
        # Before the first is sent, so that a registry that does not answer leaves none in the queue.
        values = [self._codec.encode_cancellation(each, self._topic) for each in cancellations]
        producer = self._connected()
        self._check_partitions(producer, cancellations)
        refused: list[_Refusal] = []
        for each, value in zip(cancellations, values, strict=True):
            if not refused:
                self._produce(producer, each, value, refused)
        left = producer.flush(ACCEPT_TIMEOUT_S + 1.0)
        if refused or left:
            # After some errors an idempotent producer cannot send again; the next call creates a new one.
            self._producer = None
        if left or any(error.code() == KafkaError._MSG_TIMED_OUT for _, error in refused):
            silence = BrokerUnavailableError("no broker acknowledged the cancellation in time")
            raise self._connection.error or silence
        if refused:
            cancellation, error = refused[0]
            raise _not_accepted(cancellation, error.str())
        self._connection.clear()

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = create_producer(
                self._settings, self._connection, delivery_timeout_s=ACCEPT_TIMEOUT_S
            )
            self._partitions = 0
        return self._producer

    def _check_partitions(self, producer: Producer, cancellations: Sequence[Cancellation]) -> None:
        """Check that the topic has the partitions of these requests. Raises as :meth:`send`."""
        last = max(cancellations, key=lambda each: each.source.partition)
        if last.source.partition >= self._partitions:
            self._partitions = len(partitions_of(producer, self._connection, self._topic))
        if last.source.partition >= self._partitions:
            reason = (
                f"topic {self._topic} has {self._partitions} partition(s), fewer than the requests topic. "
                f"For the remedy: zimage topics check"
            )
            raise _not_accepted(last, reason)

    def _produce(
        self, producer: Producer, cancellation: Cancellation, value: bytes, refused: list[_Refusal]
    ) -> None:
        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                refused.append((cancellation, error))

        headers: Headers = cancellation_headers(cancellation, self._source)
        while not refused:
            try:
                producer.produce(
                    self._topic,
                    key=cancellation.request_id.encode(),
                    value=value,
                    headers=list(headers),
                    partition=cancellation.source.partition,
                    on_delivery=delivered,
                )
            except BufferError:
                # ``kafka.extra`` can make the queue smaller than what is in flight here. It empties within
                # the delivery timeout.
                producer.poll(_POLL_S)
            except KafkaException as error:
                refused.append((cancellation, error.args[0]))
                return
            else:
                return


def _not_accepted(cancellation: Cancellation, reason: str) -> SubmitError:
    return SubmitError(cancellation.request_id, reason, "the cancellation of request")
