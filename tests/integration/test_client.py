from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from tests.integration.answers import Answers, ResultWriter, failed
from tests.services import Kafka, KafkaAddress, SecureKafka
from zimage_stream import (
    BrokerUnavailableError,
    PromptClient,
    PromptRequest,
    RequestError,
    ResultTimeoutError,
    Settings,
    Source,
    SubmitError,
    Submitted,
    ZImageError,
)
from zimage_stream.errors import TopicMissingError
from zimage_stream.events.codec import Codec
from zimage_stream.kafka.reader import TopicReader
from zimage_stream.kafka.topics import create_topics
from zimage_stream.settings import TopicSettings

TIMEOUT_S = 120.0


@pytest.fixture
def settings(kafka: KafkaAddress, topics: TopicSettings) -> Settings:
    return Settings(kafka=kafka.settings, topics=topics)


@pytest.fixture
def client(settings: Settings) -> Iterator[PromptClient]:
    with PromptClient(settings) as client:
        yield client


@pytest.fixture
def writer(settings: Settings) -> ResultWriter:
    return ResultWriter(settings)


def records_of(settings: Settings) -> list[tuple[int, PromptRequest, dict[str, bytes | None]]]:
    """All requests on the topic: partition, request, headers."""
    found = []
    with TopicReader(settings.kafka, settings.topics.requests) as reader:
        reader.start()
        for record in reader.read_to_end():
            request = Codec().decode_request(record.value)
            assert record.key == request.request_id.encode()
            found.append((record.partition, request, dict(record.headers)))
    return found


def test_a_submitted_request_is_on_the_topic(client: PromptClient, settings: Settings) -> None:
    request = PromptRequest(prompt="cafe\u0301", attributes={"k": "v"})
    assert client.submit(request, headers={"traceparent": "00-1-2-01"}) == request.request_id
    ((_, found, headers),) = records_of(settings)
    assert found.prompt == "caf\u00e9"
    assert found.attributes == {"k": "v"}
    assert headers["traceparent"] == b"00-1-2-01"
    assert headers["ce_id"] == request.request_id.encode()


def test_an_invalid_request_is_refused_before_it_is_sent(client: PromptClient, settings: Settings) -> None:
    with pytest.raises(RequestError, match="steps"):
        client.submit(PromptRequest(prompt="a", steps=51))
    client.submit(PromptRequest(prompt="a"))
    assert len(records_of(settings)) == 1


def test_requests_are_spread_evenly_over_all_partitions(client: PromptClient, settings: Settings) -> None:
    client.submit_many(PromptRequest(prompt="a") for _ in range(40))
    count = Counter(partition for partition, _, _ in records_of(settings))
    assert count == dict.fromkeys(range(4), 10)


def test_submit_many_sends_all_valid_requests_and_reports_each_failure(
    client: PromptClient, settings: Settings
) -> None:
    count, failures = 5_000, []
    requests = (
        PromptRequest(prompt="" if number % 1_000 == 7 else "a", request_id=f"r{number}")
        for number in range(count)
    )

    def note(request: PromptRequest, error: ZImageError) -> None:
        assert isinstance(error, RequestError)
        failures.append(request.request_id)

    assert client.submit_many(requests, on_failure=note) == Submitted(accepted=count - 5, failed=5)
    assert failures == [f"r{number}" for number in range(7, count, 1_000)]
    sent = {request.request_id for _, request, _ in records_of(settings)}
    assert sent == {f"r{number}" for number in range(count)} - set(failures)


def test_a_cancellation_goes_to_the_partition_of_its_request(
    client: PromptClient, settings: Settings
) -> None:
    requests = [PromptRequest(prompt="a", tenant="shop") for _ in range(8)]
    places = {each.request_id: client.submit_nowait(each).result(TIMEOUT_S) for each in requests}
    for request_id in places:
        assert client.cancel(request_id, "changed my mind")
    found = {}
    with TopicReader(settings.kafka, settings.topics.cancellations) as reader:
        reader.start()
        for record in reader.read_to_end():
            cancellation = Codec().decode_cancellation(record.value)
            assert record.partition == cancellation.source.partition
            assert (cancellation.tenant, cancellation.reason) == ("shop", "changed my mind")
            found[cancellation.request_id] = cancellation.source
    assert found == places


def test_a_request_that_is_not_acknowledged_yet_can_be_cancelled(
    client: PromptClient, settings: Settings
) -> None:
    request = PromptRequest(prompt="a")
    place = client.submit_nowait(request)
    assert client.cancel(request.request_id)
    with TopicReader(settings.kafka, settings.topics.cancellations) as reader:
        reader.start()
        (record,) = reader.read_to_end()
    assert Codec().decode_cancellation(record.value).source == place.result(TIMEOUT_S)


def test_what_cannot_be_cancelled_is_said(
    client: PromptClient, settings: Settings, writer: ResultWriter
) -> None:
    request = PromptRequest(prompt="a")
    place = client.submit_nowait(request).result(TIMEOUT_S)
    assert not client.cancel("sent-by-another-client")
    for reason in ("x" * 501, "\x1b", "\ud800"):
        with pytest.raises(RequestError, match="reason"):
            client.cancel(request.request_id, reason)
    writer.write([failed(request, place)])
    client.wait(request.request_id, TIMEOUT_S)
    assert not client.cancel(request.request_id)


def test_wait_returns_the_result_of_its_own_record(
    client: PromptClient, settings: Settings, writer: ResultWriter
) -> None:
    request = PromptRequest(prompt="a", request_id="again")
    older = client.submit_nowait(request).result(TIMEOUT_S)
    newer = client.submit_nowait(request).result(TIMEOUT_S)
    writer.write([failed(request, older)])
    with pytest.raises(ResultTimeoutError):
        client.wait("again", timeout=1)
    writer.write([failed(request, newer)])
    assert client.wait("again", timeout=TIMEOUT_S).source == newer
    assert [result.source for result in client.results(["again"], timeout=TIMEOUT_S)] == [newer]


def test_a_result_that_arrives_before_the_wait_is_not_missed(
    client: PromptClient, writer: ResultWriter
) -> None:
    requests = [PromptRequest(prompt="a") for _ in range(50)]
    sources = [client.submit_nowait(request).result(TIMEOUT_S) for request in requests]
    writer.write(failed(*pair) for pair in zip(requests, sources, strict=True))
    for request, source in reversed(list(zip(requests, sources, strict=True))):
        assert client.wait(request.request_id, timeout=TIMEOUT_S).source == source
    ids = [request.request_id for request in requests]
    assert sorted(result.request_id for result in client.results(ids, timeout=TIMEOUT_S)) == sorted(ids)


def test_aborted_and_undecodable_records_are_not_results(
    client: PromptClient, writer: ResultWriter, caplog: pytest.LogCaptureFixture
) -> None:
    request = PromptRequest(prompt="a")
    source = client.submit_nowait(request).result(TIMEOUT_S)
    writer.write([failed(request, source)], commit=False)
    writer.write_raw(b"\x00junk")
    with pytest.raises(ResultTimeoutError) as caught:
        client.wait(request.request_id, timeout=2)
    assert caught.value.missing == (request.request_id,)
    assert "that is not a result" in caplog.text
    writer.write([failed(request, source)])
    assert client.wait(request.request_id, timeout=TIMEOUT_S).source == source


def test_results_of_a_batch_end_at_the_timeout(client: PromptClient, writer: ResultWriter) -> None:
    wanted = [PromptRequest(prompt="a", batch_id="cats") for _ in range(3)]
    other = PromptRequest(prompt="a", batch_id="dogs")
    client.submit_many([*wanted, other])
    place = Source(topic="t", partition=0, offset=0)
    writer.write(failed(request, place) for request in (*wanted, other))
    found = [result.request_id for result in client.results(batch_id="cats", timeout=3)]
    assert sorted(found) == sorted(request.request_id for request in wanted)


def test_results_names_the_missing_requests(client: PromptClient, writer: ResultWriter) -> None:
    first, second = PromptRequest(prompt="a"), PromptRequest(prompt="b")
    writer.write([failed(first, client.submit_nowait(first).result(TIMEOUT_S))])
    client.submit(second)
    results = client.results([first.request_id, second.request_id], timeout=3)
    assert next(results).request_id == first.request_id
    with pytest.raises(ResultTimeoutError) as caught:
        next(results)
    assert caught.value.missing == (second.request_id,)


def test_many_threads_can_share_a_client(client: PromptClient, settings: Settings) -> None:
    def ask(number: int) -> str:
        return client.wait(client.submit(PromptRequest(prompt=str(number))), timeout=TIMEOUT_S).request_id

    with Answers(settings) as answers, ThreadPoolExecutor(24) as pool:
        ids = list(pool.map(ask, range(120)))
    assert sorted(ids) == sorted(request.request_id for request in answers.requests)


def test_another_client_finds_the_result_too(
    client: PromptClient, settings: Settings, writer: ResultWriter
) -> None:
    with PromptClient(settings) as other:
        with pytest.raises(ResultTimeoutError):
            other.wait("unheard-of", timeout=0.5)
        request = PromptRequest(prompt="a")
        source = client.submit_nowait(request).result(TIMEOUT_S)
        writer.write([failed(request, source)])
        assert other.wait(request.request_id, timeout=TIMEOUT_S).source == source


def test_the_error_for_a_missing_topic_names_the_command_to_create_it(kafka: KafkaAddress) -> None:
    nowhere = TopicSettings(requests="no-requests", results="no-results")
    with PromptClient(Settings(kafka=kafka.settings, topics=nowhere)) as client:
        with pytest.raises(TopicMissingError, match="zimage topics create"):
            client.submit(PromptRequest(prompt="a"))
        with pytest.raises(TopicMissingError, match="no-results"):
            client.wait("a", timeout=1)


def test_submitting_needs_no_results_topic(settings: Settings) -> None:
    topics = settings.topics.model_copy(update={"results": "no-results"})
    with PromptClient(settings.model_copy(update={"topics": topics})) as client:
        client.submit(PromptRequest(prompt="a"))


def test_a_dead_broker_is_reported_and_used_again_once_it_is_back(
    own_kafka: Kafka, make_topics: Callable[..., TopicSettings]
) -> None:
    settings = Settings(
        kafka=own_kafka.settings.model_copy(update={"extra": {"delivery.timeout.ms": "4000"}}),
        topics=make_topics(own_kafka),
    )
    with PromptClient(settings) as client:
        client.submit(PromptRequest(prompt="a"))
        own_kafka.kill()
        began = time.monotonic()
        with pytest.raises((SubmitError, BrokerUnavailableError)) as caught:
            client.submit(PromptRequest(prompt="b", request_id="b"))
        assert time.monotonic() - began < 60
        assert "b" in str(caught.value)
        with pytest.raises(BrokerUnavailableError):
            client.wait("b", timeout=2)
        own_kafka.start()
        client.submit(PromptRequest(prompt="c", request_id="c"))
    assert [request.request_id for _, request, _ in records_of(settings)].count("c") == 1


def test_a_broker_restart_during_submit_many_loses_no_request(
    own_kafka: Kafka, make_topics: Callable[..., TopicSettings]
) -> None:
    settings = Settings(kafka=own_kafka.settings, topics=make_topics(own_kafka))
    count, restarted = 3_000, threading.Thread(target=own_kafka.restart)

    def requests() -> Iterator[PromptRequest]:
        for number in itertools.count():
            if number == 500:
                restarted.start()
            # More requests follow until the broker is back.
            if number >= count and not restarted.is_alive():
                return
            yield PromptRequest(prompt="a")

    with PromptClient(settings) as client:
        done = client.submit_many(requests())
    restarted.join()
    assert done.failed == 0
    ids = [request.request_id for _, request, _ in records_of(settings)]
    assert len(ids) == len(set(ids)) == done.accepted


def test_a_broker_that_requires_a_password_over_tls(
    secure_kafka: SecureKafka, make_topics: Callable[..., TopicSettings]
) -> None:
    settings = Settings(kafka=secure_kafka.settings, topics=make_topics(secure_kafka))
    with Answers(settings), PromptClient(settings) as client:
        request_id = client.submit(PromptRequest(prompt="a"))
        assert client.wait(request_id, timeout=TIMEOUT_S).request_id == request_id
    wrong = settings.kafka.model_copy(update={"sasl_password": SecretStr("guess")})
    with PromptClient(settings.model_copy(update={"kafka": wrong})) as client:
        with pytest.raises(BrokerUnavailableError, match="refuses the connection"):
            client.submit(PromptRequest(prompt="a"))
        with pytest.raises(BrokerUnavailableError, match="refuses the connection"):
            client.wait("a", timeout=1)
    with pytest.raises(BrokerUnavailableError, match="refuses the connection"):
        create_topics(wrong, settings.topics)
