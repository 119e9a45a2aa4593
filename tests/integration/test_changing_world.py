"""What changes around a running client: acknowledgements without an offset, forks, added partitions."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from tests.fleet.workers import until
from tests.integration.answers import Answers, failed
from tests.integration.mock_cluster import MockCluster, Request
from tests.services import KafkaAddress
from zimage_stream import PromptClient, PromptRequest, Settings, Source, SubmitError
from zimage_stream.events.codec import Codec
from zimage_stream.kafka import reader as reader_module
from zimage_stream.kafka.clients import producer_config
from zimage_stream.settings import KafkaSettings, TopicSettings, environment_of

TIMEOUT_S = 120.0


@pytest.fixture
def settings(kafka: KafkaAddress, topics: TopicSettings) -> Settings:
    return Settings(kafka=kafka.settings, topics=topics)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_acknowledgement_without_an_offset_is_reported_and_harms_no_later_request() -> None:
    topics = TopicSettings()
    with MockCluster() as cluster:
        for name in (topics.requests, topics.results):
            cluster.create_topic(name)
        settings = Settings(kafka=KafkaSettings(bootstrap_servers=cluster.bootstrap_servers))
        with PromptClient(settings) as client:
            client.submit(PromptRequest(prompt="a heart"))
            cluster.answer(Request.PRODUCE, [KafkaError.DUPLICATE_SEQUENCE_NUMBER])
            star = PromptRequest(prompt="a star")
            lost = client.submit_nowait(star)
            with pytest.raises(SubmitError, match="did not report its offset"):
                lost.result(TIMEOUT_S)
            # Its result arrives nevertheless, as the error says.
            result = failed(star, Source(topic=topics.requests, partition=0, offset=7))
            producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
            producer.produce(topics.results, Codec().encode_result(result, topics.results), partition=0)
            assert producer.flush(120) == 0
            assert client.wait(star.request_id, TIMEOUT_S).source == result.source
            client.submit_nowait(PromptRequest(prompt="a circle")).result(TIMEOUT_S)


def test_a_cancelled_submission_harms_no_later_one(settings: Settings) -> None:
    with PromptClient(settings) as client:
        client.submit_nowait(PromptRequest(prompt="a heart")).cancel()
        client.submit_nowait(PromptRequest(prompt="a star")).result(TIMEOUT_S)


def test_a_child_process_can_submit_and_wait_like_its_parent(settings: Settings) -> None:
    program = textwrap.dedent(
        """
        import os, sys
        from zimage_stream import PromptClient, PromptRequest
        client = PromptClient()
        client.wait(client.submit(PromptRequest(prompt="fail", request_id="parent")), timeout=120)
        child = os.fork()
        name = "child" if child == 0 else "parent again"
        request_id = name.replace(" ", "-")
        client.wait(client.submit(PromptRequest(prompt="fail", request_id=request_id)), timeout=120)
        if child == 0:
            client.wait("parent", timeout=120)
            client.close()
            sys.exit(7)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status))
        client.close()
        """
    )
    with Answers(settings):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment_of(settings),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr


def test_results_in_newly_added_partitions_are_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "NEW_PARTITIONS_S", 0.2)
    topic, requests = settings.topics.results, [PromptRequest(prompt=f"{n}") for n in range(6)]
    with PromptClient(settings) as client, ThreadPoolExecutor(len(requests)) as pool:
        waiting = []
        for request in requests:
            source = client.submit_nowait(request).result(TIMEOUT_S)
            waiting.append((request, source))
        results = [pool.submit(client.wait, request.request_id, TIMEOUT_S) for request in requests]
        admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
        before = len(admin.list_topics(topic, timeout=120).topics[topic].partitions)
        admin.create_partitions([NewPartitions(topic, before + 3)])[topic].result(120)
        producer = Producer(producer_config(settings.kafka))
        until(
            lambda: len(producer.list_topics(topic, timeout=120).topics[topic].partitions) == before + 3,
            30,
            "the producer knows the new partitions",
        )
        for number, (request, source) in enumerate(waiting):
            value = Codec().encode_result(failed(request, source), topic)
            producer.produce(topic, value, partition=before + number % 3)
        assert producer.flush(120) == 0
        assert [result.result(TIMEOUT_S).request_id for result in results] == [
            request.request_id for request in requests
        ]
        # A later client reads them too, from where this client began.
        asked = [request.request_id for request in requests]
        assert {found.request_id for found in client.results(asked, timeout=TIMEOUT_S)} == set(asked)
