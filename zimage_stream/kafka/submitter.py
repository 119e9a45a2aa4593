"""Publishing of requests: an idempotent producer that visits the partitions in turn."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from zimage_stream import forks
from zimage_stream.errors import BrokerUnavailableError, SubmitError
from zimage_stream.events.image_result import Source
from zimage_stream.kafka.clients import CONTACT_TIMEOUT_S, ConnectionStatus, create_producer, partitions_of
from zimage_stream.kafka.partitions import walk
from zimage_stream.settings import KafkaSettings

log = logging.getLogger(__name__)

ACCEPT_TIMEOUT_S = 30
PARTITIONS_REFRESH_S = 300.0
_POLL_S = 0.2

_SILENCE = (KafkaError._MSG_TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)

Settled = Callable[[Source | SubmitError], None]
"""Callback, called once per record on the submitter's own thread, with the record's location or the error."""


class Submitter:
    """Sends records to one topic. Thread-safe; connects at the first call."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._connection = ConnectionStatus(settings)
        self._lock = threading.Lock()
        self._producer: Producer | None = None
        self._partitions = 0
        self._walk: Iterator[int] = iter(())
        self._walked_at = float("-inf")
        self._closed = threading.Event()
        self._poller: threading.Thread | None = None
        forks.register(self)

    def after_fork(self) -> None:
        """Start afresh with the child's own producer; records in flight belong to the parent."""
        self._lock = threading.Lock()
        forks.leak(self._producer)
        self._producer = self._poller = None
        self._closed = threading.Event()

    def send(
        self,
        request_id: str,
        value: bytes,
        headers: Sequence[tuple[str, bytes | None]],
        settled: Settled,
    ) -> None:
        """Send a record without waiting for the acknowledgement; its key is the request's id.

        Args:
            settled: called with the outcome.

        Raises:
            BrokerUnavailableError: no broker answers; the record was not sent.
            TopicMissingError: the topic does not exist.
            SubmitError: librdkafka rejects the record.
        """

        def delivered(error: KafkaError | None, message: Message) -> None:
            # An exception here would end the polling thread, on which all other requests depend.
            try:
                if error is None:
                    self._connection.clear()
                    settled(_source(request_id, message))
                else:
                    settled(self._refused(request_id, error))
            except Exception:
                log.exception("could not pass on the delivery report of request %s", request_id)

        producer, partition = self._next()
        deadline = time.monotonic() + ACCEPT_TIMEOUT_S
        while True:
            try:
                producer.produce(
                    self._topic,
                    key=request_id.encode(),
                    value=value,
                    headers=list(headers),
                    partition=partition,
                    on_delivery=delivered,
                )
            except BufferError:
                if time.monotonic() > deadline:
                    raise BrokerUnavailableError(
                        f"Kafka is too slow: the producer's queue was full for {ACCEPT_TIMEOUT_S} s"
                    ) from None
                time.sleep(0.01)
            except KafkaException as error:
                raise self._refused(request_id, error.args[0]) from error
            else:
                return

    def close(self) -> None:
        """Wait up to 10 seconds for records in flight, then release the connections."""
        if self._producer is not None:
            self._producer.flush(CONTACT_TIMEOUT_S)
        self._closed.set()
        if self._poller is not None:
            self._poller.join()
        self._producer = None

    def _next(self) -> tuple[Producer, int]:
        with self._lock:
            producer = self._producer
            if producer is None:
                producer = create_producer(
                    self._settings, self._connection, delivery_timeout_s=ACCEPT_TIMEOUT_S
                )
                self._refresh_partitions(producer)
                self._producer = producer
            elif time.monotonic() - self._walked_at > PARTITIONS_REFRESH_S:
                self._refresh_partitions(producer)
            if self._poller is None:
                self._poller = threading.Thread(target=self._poll, name="zimage-submitter", daemon=True)
                self._poller.start()
            return producer, next(self._walk)

    def _refresh_partitions(self, producer: Producer) -> None:
        self._walked_at = time.monotonic()
        try:
            count = len(partitions_of(producer, self._connection, self._topic))
        except BrokerUnavailableError:
            if self._partitions:
                return
            raise
        if count != self._partitions:
            self._partitions = count
            self._walk = walk(count, secrets.randbelow(count))

    def _poll(self) -> None:
        while not self._closed.is_set():
            producer = self._producer
            if producer is None:
                self._closed.wait(_POLL_S)
            else:
                self._poll_once(producer)

    def _poll_once(self, producer: Producer) -> None:
        try:
            producer.poll(_POLL_S)
        except Exception:
            log.exception("could not poll the producer")
            self._closed.wait(_POLL_S)

    def _refused(self, request_id: str, error: KafkaError) -> SubmitError:
        if error.fatal() or error.code() == KafkaError._FATAL:
            # After a fatal error an idempotent producer cannot send again; the next call creates a new one.
            log.warning("replacing the producer after a fatal error: %s", error.str())
            self._producer = None
        if error.code() not in _SILENCE:
            return SubmitError(request_id, error.str())
        refused = SubmitError(
            request_id,
            "no broker acknowledged it in time; it may have been stored nevertheless. Send it again with the "
            "same id: that makes no second image",
        )
        refused.__cause__ = self._connection.explain(error)
        return refused


def _source(request_id: str, message: Message) -> Source | SubmitError:
    """Return the location of an acknowledged record, or the error if the brokers did not give one."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None or offset < 0:
        # This happens if the broker stored the record at an earlier attempt whose response was lost.
        return SubmitError(
            request_id,
            "the brokers have stored it, but did not report its offset. Its result will come; sending it "
            "again with the same id makes no second image",
        )
    return Source(topic=topic, partition=partition, offset=offset)
