"""Kafka clients: the one place that turns settings into librdkafka configuration."""

from __future__ import annotations

import logging
import time
from functools import lru_cache
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ClusterMetadata,
    PartitionMetadata,
)

from zimage_stream.errors import BrokerUnavailableError, SettingsError, TopicMissingError
from zimage_stream.settings import KafkaSettings

MAX_MESSAGE_BYTES = 4 << 20
"""Largest result or dead letter, in bytes: an oversized poison record must not abort every transaction."""


CONTACT_TIMEOUT_S = 10.0
METADATA_AGE_MS = 10_000
"""How long an admin client believes what it knows of a topic's leaders; longer than a slow broker answers."""
_TRY_S = 1.0

_ACCESS_DENIED = (KafkaError._AUTHENTICATION, KafkaError._SSL)


class ConnectionStatus:
    """Remembers why the brokers do not answer a client.

    Pass it to the client as ``error_cb``; librdkafka calls it only while the client is polled.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        self._error: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        # "All brokers are down" also follows a rejected login, and must not replace that better reason.
        if error.code() in _ACCESS_DENIED or (
            error.code() == KafkaError._ALL_BROKERS_DOWN and not self._error
        ):
            self._error = error

    def clear(self) -> None:
        """Forget the last error: a broker has answered."""
        self._error = None

    @property
    def error(self) -> BrokerUnavailableError | None:
        """The current error, or ``None`` while a broker answers."""
        return None if self._error is None else self.explain(self._error)

    @property
    def is_refused(self) -> bool:
        """Whether waiting is pointless, because the brokers refuse our credentials or certificate."""
        return self._error is not None and self._error.code() in _ACCESS_DENIED

    def explain(self, error: KafkaError) -> BrokerUnavailableError:
        """Build the exception for a failed call, preferring the cause that the client reported, if any."""
        cause = self._error or error
        verb = "refuses the connection" if cause.code() in _ACCESS_DENIED else "does not answer"
        return BrokerUnavailableError(f"Kafka at {self._servers} {verb}: {cause.str()}")


def metadata_of(
    client: Producer | Consumer | AdminClient, connection: ConnectionStatus, topic: str | None = None
) -> ClusterMetadata:
    """Fetch the metadata of the cluster or of one topic, within a fixed time.

    Naming a topic creates it on brokers with ``auto.create.topics.enable``.

    Raises:
        BrokerUnavailableError: no broker answers within 10 seconds, or all refuse the connection.
    """
    deadline = time.monotonic() + CONTACT_TIMEOUT_S
    while True:
        try:
            if topic is None:
                return client.list_topics(timeout=_TRY_S)
            return client.list_topics(topic, timeout=_TRY_S)
        except KafkaException as error:
            client.poll(0)
            if connection.is_refused or time.monotonic() >= deadline:
                raise connection.explain(error.args[0]) from error


def partitions_of(
    client: Producer | Consumer | AdminClient, connection: ConnectionStatus, topic: str
) -> dict[int, PartitionMetadata]:
    """The partitions of a topic.

    Raises:
        BrokerUnavailableError: as :func:`metadata_of`.
        TopicMissingError: the topic does not exist.
    """
    found = metadata_of(client, connection, topic).topics[topic]
    if found.error is not None:
        raise TopicMissingError(topic, found.error.str())
    return found.partitions


def create_admin(settings: KafkaSettings, connection: ConnectionStatus | None = None) -> AdminClient:
    """Create an admin client that reports connection errors to ``connection``.

    Raises:
        SettingsError: as :func:`common_config`.
    """
    # With librdkafka 2.16, an answer that a leader's epoch is outdated does not make an admin client ask who
    # leads now. By default it would name the same epoch for a quarter of an hour, and be refused each time.
    config = common_config(settings) | {"metadata.max.age.ms": METADATA_AGE_MS} | settings.extra
    return AdminClient(_with_error_callback(config, connection))


def create_producer(
    settings: KafkaSettings,
    connection: ConnectionStatus | None = None,
    *,
    delivery_timeout_s: float | None = None,
) -> Producer:
    """Create an idempotent producer that reports connection errors to ``connection``.

    Args:
        delivery_timeout_s: how long a record may wait for the brokers' acknowledgement, in seconds;
            by default librdkafka's 5 minutes. ``kafka.extra`` overrides it.

    Raises:
        SettingsError: as :func:`common_config`.
    """
    config = producer_config(settings)
    if delivery_timeout_s is not None:
        config = {"delivery.timeout.ms": round(delivery_timeout_s * 1_000), **config}
    return Producer(_with_error_callback(config, connection))


def _with_error_callback(config: dict[str, Any], connection: ConnectionStatus | None) -> dict[str, Any]:
    return config if connection is None else {**config, "error_cb": connection}


def common_config(settings: KafkaSettings) -> dict[str, Any]:
    """Build the options that all clients share: broker addresses, authentication, logging.

    Raises:
        SettingsError: librdkafka rejects an option in ``kafka.extra``.
    """
    _check_extra(tuple(sorted(settings.extra.items())))
    optional = {
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.sasl_password and settings.sasl_password.get_secret_value(),
        "ssl.ca.location": settings.ssl_ca_location and str(settings.ssl_ca_location),
        "ssl.certificate.location": settings.ssl_certificate_location
        and str(settings.ssl_certificate_location),
        "ssl.key.location": settings.ssl_key_location and str(settings.ssl_key_location),
        "ssl.key.password": settings.ssl_key_password and settings.ssl_key_password.get_secret_value(),
    }
    return {
        "bootstrap.servers": settings.bootstrap_servers,
        "security.protocol": settings.security_protocol,
        "client.id": "zimage",
        # A restarted broker is back within seconds, while the default backs off to 10 s.
        "reconnect.backoff.max.ms": 1_000,
        "logger": logging.getLogger("zimage_stream.kafka.librdkafka"),
        **{name: value for name, value in optional.items() if value is not None},
    }


@lru_cache(maxsize=16)
def _check_extra(extra: tuple[tuple[str, str], ...]) -> None:
    """Raise SettingsError unless a client accepts these options. Contacts no broker."""
    if not extra:
        return
    try:
        # A consumer ignores producer options, so it can check both kinds.
        Consumer({**dict(extra), "group.id": "none", "log_level": 0}).close()
    except KafkaException as error:
        raise SettingsError(f"ZIMAGE_KAFKA__EXTRA: {error.args[0].str()}") from None


def producer_config(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration of an idempotent producer whose records are acknowledged by all in-sync replicas."""
    return {
        **common_config(settings),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0.5,
        "compression.type": "lz4",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        **settings.extra,
    }


def progress_config(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration of the producer of progress, which may be lost.

    One replica acknowledges, what is not accepted within 10 seconds is given up, and a full queue refuses
    more. The client itself logs nothing.
    """
    return {
        **common_config(settings),
        "acks": 1,
        "linger.ms": 20,
        "compression.type": "lz4",
        "message.timeout.ms": 10_000,
        "queue.buffering.max.messages": 4_000,
        "queue.buffering.max.kbytes": 4_096,
        "log_level": 0,
        "error_cb": _unheard,
        **settings.extra,
    }


def _unheard(_: KafkaError) -> None:
    """Do nothing: delivery reports tell."""


def transactional_config(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    """Configuration of a worker's transactional producer.

    The short backoffs make transactions ten times shorter: by default librdkafka waits 100 ms whenever the
    coordinator answers CONCURRENT_TRANSACTIONS.
    """
    return {
        **producer_config(settings),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": 10_000,
        "linger.ms": 0,
        "retry.backoff.ms": 1,
        "retry.backoff.max.ms": 20,
        **settings.extra,
    }


def transactional_id(settings: KafkaSettings, *names: str) -> str:
    """Build a transactional id that is unique to these names. Pure.

    Names may contain the hyphens that join them: ``prod`` and ``eu-x`` join to the same text as ``prod-eu``
    and ``x``. The lengths of all parts but the last are therefore appended: ``zimage-prod-eu-x@6.4``. The id
    begins with the prefix from the settings, so that the brokers' ACLs can match it.

    Args:
        names: for a worker its group and slot; for any other user the group and at least two more words.
    """
    parts = (settings.transactional_id_prefix, *names)
    lengths = ".".join(str(len(part)) for part in parts[:-1])
    return f"{'-'.join(parts)}@{lengths}"


def worker_consumer_config(settings: KafkaSettings, group_id: str, slot: str) -> dict[str, Any]:
    """Configuration of a worker's consumer: manual commits, and an error for an offset out of range.

    Args:
        slot: the client id, as the group's other members, ``zimage status`` and the brokers' logs show it.
    """
    return {
        **common_config(settings),
        "client.id": slot,
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A committed offset below the log's start means lost requests: an operator decides, not a default.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 8_000,
        "heartbeat.interval.ms": 2_000,
        "max.poll.interval.ms": 300_000,
        # Pausing a partition discards its prefetched records and fetches them again later: keep them few.
        "queued.max.messages.kbytes": 2_048,
        "fetch.wait.max.ms": 100,
        **settings.extra,
    }


def reader_config(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration of a consumer without a group: manual assignment, committed records only, no commits."""
    return {
        **common_config(settings),
        "group.id": "zimage-reader",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": 100,
        **settings.extra,
    }
