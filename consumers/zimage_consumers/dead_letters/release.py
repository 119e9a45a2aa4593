"""Releases of requests that workers hold back: notes in a compacted topic, one for each code."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Message

from zimage_stream.errors import BrokerUnavailableError
from zimage_stream.events.image_result import Code
from zimage_stream.kafka.clients import ConnectionStatus, create_producer
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.record import Record
from zimage_stream.kafka.topics import make_topics, released_topic, topic_exists
from zimage_stream.settings import Settings

log = logging.getLogger(__name__)

_TIMEOUT_S = 30.0


def write_releases(settings: Settings, codes: Iterable[Code], until: float) -> None:
    """Release requests that fail with these codes until a UNIX time; creates the topic if necessary.

    Raises:
        BrokerUnavailableError: no broker accepted the notes.
        TopicError: the topic does not exist and cannot be created.
    """
    make_topics(settings.kafka, [released_topic(settings.topics)])
    connection, failures = ConnectionStatus(settings.kafka), list[KafkaError]()
    producer = create_producer(settings.kafka, connection)

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    for code in codes:
        value = json.dumps({"until": until}).encode()
        producer.produce(released_topic(settings.topics).name, value, code.encode(), on_delivery=delivered)
    if producer.flush(_TIMEOUT_S) or failures:
        problem = failures[0] if failures else KafkaError(KafkaError._TIMED_OUT)
        raise connection.explain(problem)


def read_releases(settings: Settings) -> dict[Code, float]:
    """Read until when requests with each code are released, in UNIX time.

    Raises:
        BrokerUnavailableError: no broker responds.
        TopicMissingError: these credentials may not read the topic.
    """
    topic, found = released_topic(settings.topics).name, dict[Code, float]()
    try:
        if not topic_exists(settings.kafka, topic):
            return found
        with TopicReader(settings.kafka, topic) as reader:
            reader.start()
            for record in reader.read_to_end():
                _note(record, found)
    except KafkaException as error:
        raise BrokerUnavailableError(f"topic {topic}: {error.args[0].str()}") from error
    return found


def _note(record: Record, found: dict[Code, float]) -> None:
    try:
        found[Code((record.key or b"").decode())] = float(json.loads(record.value or b"")["until"])
    except (ValueError, TypeError, KeyError) as error:
        # Not written by us; whoever may write to the topic must not be able to stop a worker.
        log.warning("ignoring a note about releases (offset %s): %s", record.offset, error)
