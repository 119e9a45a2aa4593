"""An in-process broker, for demos and tests that need nothing installed."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from confluent_kafka import KafkaException, Producer

from zimage_stream.errors import BrokerUnavailableError
from zimage_stream.settings import TopicSettings

PARTITIONS = 4
"""Number of partitions that librdkafka's mock cluster gives to every topic."""

_START_TIMEOUT_S = 10.0


class EmbeddedBroker:
    """librdkafka's mock cluster, listening on loopback for as long as the context lasts.

    It supports produce, fetch, consumer groups (``classic`` protocol) and offset commits with metadata.
    Its limits:

    - It does not store transactional offsets and it delivers aborted records, so a worker on it runs with
      the guarantee ``at_least_once``, and a test that passes on it says nothing about transactions.
    - The first join of a group takes 3 seconds.
    - Every topic has 4 partitions and is created the first time a client requests it; an admin client
      cannot create, describe or delete topics.
    - Nothing is written to disk, and a partition keeps about its newest 5 MiB: older records are gone,
      consumed or not.

    Example::

        with EmbeddedBroker() as broker:
            settings = load_settings(overrides={"kafka": {"bootstrap_servers": broker.bootstrap_servers}})

    Args:
        topics: created at the start, since a consumer's subscription does not create them.
    """

    def __init__(self, topics: TopicSettings | None = None) -> None:
        topics = topics or TopicSettings()
        self._topics: Iterable[str] = (topics.requests, topics.results, topics.dead_letters, topics.progress)
        self._cluster: Producer | None = None
        self._bootstrap_servers = ""

    @property
    def bootstrap_servers(self) -> str:
        """Address of the broker, ``127.0.0.1:port``; empty before the context is entered."""
        return self._bootstrap_servers

    def __enter__(self) -> EmbeddedBroker:
        # librdkafka requires an address, and replaces it with the mock cluster's own.
        cluster = Producer(
            {
                "bootstrap.servers": "embedded",
                "test.mock.num.brokers": 1,
                "logger": logging.getLogger("zimage_stream.kafka.embedded"),
                "log_level": 3,
            }
        )
        try:
            for topic in self._topics:
                brokers = cluster.list_topics(topic, timeout=_START_TIMEOUT_S).brokers.values()
        except KafkaException as error:
            raise BrokerUnavailableError(f"the embedded broker did not start: {error}") from error
        self._bootstrap_servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)
        self._cluster = cluster
        return self

    def __exit__(self, *_: object) -> None:
        # The cluster belongs to this client, and stops when the last reference to it is dropped.
        self._cluster = None
        self._bootstrap_servers = ""
