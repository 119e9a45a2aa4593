"""Construction of Kafka clients: one place that turns settings into librdkafka's configuration."""

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
"""Results and dead letters: an oversized poison must not abort every transaction."""


CONTACT_TIMEOUT_S = 10.0
_TRY_S = 1.0

_NOT_LET_IN = (KafkaError._AUTHENTICATION, KafkaError._SSL)


class Trouble:
    """Why a client gets no answer. It is given as ``error_cb``, and told only while somebody polls."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._servers = settings.bootstrap_servers
        self._error: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        # That all brokers are down follows from being let in by none, and says less.
        if error.code() in _NOT_LET_IN or (error.code() == KafkaError._ALL_BROKERS_DOWN and not self._error):
            self._error = error

    def clear(self) -> None:
        """A broker has answered."""
        self._error = None

    @property
    def error(self) -> BrokerUnavailableError | None:
        """Set while no broker answers."""
        return None if self._error is None else self.explain(self._error)

    @property
    def is_final(self) -> bool:
        """Whether waiting is in vain: we are not let in."""
        return self._error is not None and self._error.code() in _NOT_LET_IN

    def explain(self, error: KafkaError) -> BrokerUnavailableError:
        """The exception for a call that got no answer, with the cause that the client was told, if any."""
        cause = self._error or error
        verb = "does not let us in" if cause.code() in _NOT_LET_IN else "does not answer"
        return BrokerUnavailableError(f"Kafka at {self._servers} {verb}: {cause.str()}")


def metadata_of(
    client: Producer | Consumer | AdminClient, trouble: Trouble, topic: str | None = None
) -> ClusterMetadata:
    """What the brokers say of the cluster, or of one topic: first contact, with a clear end.

    To ask for one topic by name makes it, where the broker creates topics automatically.

    Raises:
        BrokerUnavailableError: no broker answers within 10 seconds, or lets us in.
    """
    deadline = time.monotonic() + CONTACT_TIMEOUT_S
    while True:
        try:
            if topic is None:
                return client.list_topics(timeout=_TRY_S)
            return client.list_topics(topic, timeout=_TRY_S)
        except KafkaException as error:
            client.poll(0)
            if trouble.is_final or time.monotonic() >= deadline:
                raise trouble.explain(error.args[0]) from error


def partitions_of(
    client: Producer | Consumer | AdminClient, trouble: Trouble, topic: str
) -> dict[int, PartitionMetadata]:
    """The partitions of a topic.

    Raises:
        BrokerUnavailableError: as :func:`metadata_of`.
        TopicMissingError: there is no such topic.
    """
    found = metadata_of(client, trouble, topic).topics[topic]
    if found.error is not None:
        raise TopicMissingError(topic, found.error.str())
    return found.partitions


def create_admin(settings: KafkaSettings, trouble: Trouble | None = None) -> AdminClient:
    """An admin client, which tells ``trouble`` why it gets no answer.

    Raises:
        SettingsError: as :func:`common_config`.
    """
    return AdminClient(_told(common_config(settings) | settings.extra, trouble))


def create_producer(
    settings: KafkaSettings, trouble: Trouble | None = None, *, delivery_timeout_s: float | None = None
) -> Producer:
    """An idempotent producer, which tells ``trouble`` why it gets no answer.

    Args:
        delivery_timeout_s: how long a record may wait for the brokers to acknowledge it; absent:
            librdkafka's 5 minutes. ``kafka.extra`` overrides it.

    Raises:
        SettingsError: as :func:`common_config`.
    """
    config = producer_config(settings)
    if delivery_timeout_s is not None:
        config = {"delivery.timeout.ms": round(delivery_timeout_s * 1_000), **config}
    return Producer(_told(config, trouble))


def _told(config: dict[str, Any], trouble: Trouble | None) -> dict[str, Any]:
    return config if trouble is None else {**config, "error_cb": trouble}


def common_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every client shares: where the brokers are, how to be let in, where log lines go.

    Raises:
        SettingsError: librdkafka does not take what ``kafka.extra`` says.
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
        # A broker that restarts is back within seconds; the default backs off to 10 s.
        "reconnect.backoff.max.ms": 1_000,
        "logger": logging.getLogger("zimage_stream.kafka.librdkafka"),
        **{name: value for name, value in optional.items() if value is not None},
    }


@lru_cache(maxsize=16)
def _check_extra(extra: tuple[tuple[str, str], ...]) -> None:
    """Raise SettingsError unless a client can be made with these options. Contacts nobody."""
    if not extra:
        return
    try:
        # Options of producers are no error to a consumer.
        Consumer({**dict(extra), "group.id": "none", "log_level": 0}).close()
    except KafkaException as error:
        raise SettingsError(f"ZIMAGE_KAFKA__EXTRA: {error.args[0].str()}") from None


def producer_config(settings: KafkaSettings) -> dict[str, Any]:
    """An idempotent producer that loses nothing: every record is on all in-sync replicas."""
    return {
        **common_config(settings),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0.5,
        "compression.type": "lz4",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        **settings.extra,
    }


def transactional_config(settings: KafkaSettings, transactional_id: str) -> dict[str, Any]:
    """The worker's producer. The small waits are worth a tenfold shorter transaction: librdkafka's
    defaults wait 100 ms whenever the coordinator says CONCURRENT_TRANSACTIONS."""
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
    """The transactional id of one user of transactions, different for different names. Pure.

    Names may contain the hyphens that join them: ``prod`` and ``eu-x`` read like ``prod-eu`` and ``x``. So
    the lengths of all but the last follow, and say where each ends: ``zimage-prod-eu-x@6.4``. The id begins
    with the prefix from the settings, as the brokers' access rules need.

    Args:
        names: the group and the slot of a worker; the group and more than one word for anybody else.
    """
    parts = (settings.transactional_id_prefix, *names)
    lengths = ".".join(str(len(part)) for part in parts[:-1])
    return f"{'-'.join(parts)}@{lengths}"


def worker_consumer_config(settings: KafkaSettings, group_id: str, slot: str) -> dict[str, Any]:
    """The worker's consumer: commits by hand, and an offset that is not there is an error to decide on.

    Args:
        slot: what the group's other members, ``zimage status`` and the brokers' logs call it.
    """
    return {
        **common_config(settings),
        "client.id": slot,
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # A base below the log's start means lost requests; the operator chooses, not a default.
        "auto.offset.reset": "error",
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 8_000,
        "heartbeat.interval.ms": 2_000,
        "max.poll.interval.ms": 300_000,
        # Pausing drops what librdkafka has queued and fetches it again later: keep that small.
        "queued.max.messages.kbytes": 2_048,
        "fetch.wait.max.ms": 100,
        **settings.extra,
    }


def reader_config(settings: KafkaSettings) -> dict[str, Any]:
    """A reader without a group: assigned by hand, sees committed results only, commits nothing."""
    return {
        **common_config(settings),
        "group.id": "zimage-reader",
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": 100,
        **settings.extra,
    }
