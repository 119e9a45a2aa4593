"""The checker's own ways, on brokers that do what real ones do rarely."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, Producer

from tests.fleet.checker import LetterPosition, position_of
from tests.integration.mock_cluster import MockCluster, Request


def acknowledged(producer: Producer, value: bytes) -> Message:
    """The acknowledgement of a record with this value."""
    told: list[Message] = []

    def delivered(error: Any, message: Message) -> None:
        assert error is None, error
        told.append(message)

    producer.produce("requests", value, b"key", 0, on_delivery=delivered)
    assert producer.flush(120) == 0
    return told[0]


@pytest.mark.parametrize(("taken", "expected"), [((), (0, 1)), ({(0, 1)}, (0, 2))])
def test_a_record_whose_acknowledgement_has_no_offset_is_looked_for(
    taken: Container[LetterPosition], expected: LetterPosition
) -> None:
    with MockCluster() as cluster:
        cluster.create_topic("requests")
        kafka = {"bootstrap.servers": cluster.bootstrap_servers}
        producer = Producer({**kafka, "enable.idempotence": True})
        places = [position_of(kafka, acknowledged(producer, value)) for value in (b"heart", b"star", b"star")]
        assert places == [(0, 0), (0, 1), (0, 2)]
        cluster.answer(Request.PRODUCE, [KafkaError.DUPLICATE_SEQUENCE_NUMBER])
        again = acknowledged(producer, b"star")
        assert again.offset() is None
        assert position_of(kafka, again, taken) == expected
