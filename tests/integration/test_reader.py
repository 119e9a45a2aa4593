"""Finding a topic's end while its partitions have no leader yet, on librdkafka's mock broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError

from tests.integration.mock_cluster import MockCluster, Request
from zimage_stream import BrokerUnavailableError, PromptClient, PromptRequest, Settings
from zimage_stream.kafka import reader as module
from zimage_stream.kafka.embedded import EmbeddedBroker
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.settings import KafkaSettings

TOPIC = "zimage.results"


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with MockCluster() as cluster:
        cluster.create_topic(TOPIC, partitions=1)
        yield cluster


@pytest.fixture
def reader(cluster: MockCluster) -> Iterator[TopicReader]:
    with TopicReader(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers), TOPIC) as reader:
        yield reader


def test_the_end_is_found_once_a_new_topic_has_a_leader(cluster: MockCluster, reader: TopicReader) -> None:
    cluster.answer(Request.LIST_OFFSETS, [KafkaError.NOT_LEADER_FOR_PARTITION] * 3)
    assert reader.end_offsets() == {0: 0}


def test_a_missing_leader_is_reported(
    cluster: MockCluster, reader: TopicReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONTACT_TIMEOUT_S", 1.0)
    cluster.answer(Request.LIST_OFFSETS, [KafkaError.NOT_LEADER_FOR_PARTITION] * 1_000)
    with pytest.raises(BrokerUnavailableError, match="leader"):
        reader.end_offsets()


def test_reading_stops_at_the_given_ends() -> None:
    with EmbeddedBroker() as broker:
        settings = Settings(kafka=KafkaSettings(bootstrap_servers=broker.bootstrap_servers))
        with (
            PromptClient(settings) as client,
            TopicReader(settings.kafka, settings.topics.requests) as reader,
        ):
            early = {client.submit(PromptRequest(prompt="a heron")) for _ in range(2)}
            ends = reader.end_offsets()
            late = {client.submit(PromptRequest(prompt="a heron")) for _ in range(9)}
            reader.start()
            read = [record.key for record in reader.read_to_end(ends)]
            assert set(read) == {key.encode() for key in early}
            reader.start()
            assert len({record.key for record in reader.read_to_end()}) == len(early | late)
