from __future__ import annotations

import socket

import pytest

from zimage_stream import PromptClient, PromptRequest, Settings
from zimage_stream.kafka.embedded import PARTITIONS, EmbeddedBroker
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import KafkaSettings


def test_it_serves_the_topics_on_loopback() -> None:
    with EmbeddedBroker() as broker:
        assert broker.bootstrap_servers.startswith("127.0.0.1:")
        settings = Settings(kafka=KafkaSettings(bootstrap_servers=broker.bootstrap_servers))
        with PromptClient(settings) as client:
            for _ in range(PARTITIONS):
                client.submit(PromptRequest(prompt="a heron"))
        with TopicReader(settings.kafka, settings.topics.requests) as reader:
            assert reader.end_offsets() == dict.fromkeys(range(PARTITIONS), 1)


def test_it_stops_when_the_context_ends() -> None:
    with EmbeddedBroker() as broker:
        host, port = broker.bootstrap_servers.split(":")
        socket.create_connection((host, int(port)), timeout=5).close()
    assert broker.bootstrap_servers == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
