"""Fixtures for every tier: real services, and topics and buckets for a single test."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.chaos.run import open_services
from tests.chaos.stage import Services
from tests.fleet.arena import Arena, open_arena
from tests.fleet.topics import names_of, topics_named
from tests.services import (
    Kafka,
    KafkaAddress,
    KafkaCluster,
    Minio,
    MinioAddress,
    RegistryAddress,
    SecureKafka,
    sources,
)
from tests.services.addresses import wait_until_ready
from tests.services.errors import ServiceError, ServiceMissingError
from tests.services.native.cache import announce, cached, run_tool
from tests.services.native.java import find_java
from zimage_stream.kafka.clients import common_config, reader_config
from zimage_stream.kafka.topics import TopicError, create_topics
from zimage_stream.settings import TopicSettings

# No deadlines: the machine that runs the tests also runs the brokers.
hypothesis.settings.register_profile("zimage", deadline=None)
hypothesis.settings.load_profile("zimage")

JAVA_EXAMPLE = Path(__file__).parents[1] / "examples" / "java"
REQUEST_PARTITIONS = 4
SERVED_TIMEOUT_S = 120.0


def pytest_configure(config: pytest.Config) -> None:
    """The processes that a run is split into (``-n``) share the services, which this one starts."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        return
    folder = Path(tempfile.mkdtemp(prefix="zimage-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    services = ExitStack()
    config.add_cleanup(services.close)
    os.environ.update(services.enter_context(sources.shared(os.environ, folder)))


@contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except ServiceMissingError as error:
        if sources.on_absence(os.environ) is sources.Absence.FAIL:
            pytest.fail(f"CI is set, and a service is missing: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaAddress]:
    """A broker shared by all tests: ``.bootstrap_servers``, ``.settings``. No test may disturb it."""
    with _or_skip(), sources.kafka(os.environ, tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioAddress]:
    """A MinIO shared by all tests: ``.endpoint``, ``.access_key``, ``.secret_key``, ``.settings(bucket)``."""
    with _or_skip(), sources.minio(os.environ, tmp_path_factory.mktemp("minio")) as address:
        yield address


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryAddress]:
    """A schema registry shared by all tests: ``.url``, ``.settings``."""
    with _or_skip(), sources.registry(os.environ, tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="session")
def java_producer() -> Sequence[str]:
    """The command that runs the Java example; its arguments follow."""
    with _or_skip():
        java = find_java(17)
        pom = JAVA_EXAMPLE / "pom.xml"
        version = hashlib.sha256(pom.read_bytes()).hexdigest()[:12]

        def build(folder: Path) -> None:
            announce("the libraries of the Java example")
            goal = ["dependency:copy-dependencies", f"-DoutputDirectory={folder}"]
            run_tool(["mvn", "-B", "-q", "-f", str(pom), *goal], folder)

        libraries = cached(f"java-example-{version}", build)
    return (str(java), "-cp", f"{libraries}/*", str(JAVA_EXAMPLE / "PromptProducer.java"))


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Kafka]:
    """A broker for this test alone: a plain process that the test may kill, pause and restart."""
    with _or_skip(), Kafka(tmp_path / "kafka") as service:
        yield service


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[Minio]:
    """A MinIO for this test alone: a plain process that the test may kill, pause and restart."""
    with _or_skip(), Minio(tmp_path / "minio") as service:
        yield service


@pytest.fixture(scope="module")
def own_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A broker and a MinIO for the tests of one module, which may do anything to them."""
    with _or_skip(), open_services(tmp_path_factory.mktemp("services")) as services:
        yield services


@pytest.fixture(scope="module")
def own_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """Three brokers for the tests of one module, which may do anything to them."""
    with _or_skip(), KafkaCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def secure_kafka(tmp_path: Path) -> Iterator[SecureKafka]:
    """A broker for this test alone that requires a password over TLS; ``.settings`` has the credentials."""
    with _or_skip(), SecureKafka(tmp_path / "kafka") as service:
        yield service


@pytest.fixture
def make_topics() -> Iterator[Callable[..., TopicSettings]]:
    """``make_topics(kafka, partitions=4)``: fresh topics with unique names, on any broker."""
    made: list[tuple[KafkaAddress | Kafka, TopicSettings]] = []

    def make(on: KafkaAddress | Kafka, partitions: int = REQUEST_PARTITIONS) -> TopicSettings:
        run = uuid.uuid4().hex[:12]
        topics = topics_named(run)
        wait_until_ready(lambda: _create(on, topics, partitions), SERVED_TIMEOUT_S)
        wait_until_ready(lambda: _probe_partitions(on, topics), SERVED_TIMEOUT_S)
        made.append((on, topics))
        return topics

    yield make
    for on, topics in made:
        # A broker for one test disappears with its topics; the shared one should stay small.
        if isinstance(on, KafkaAddress):
            _delete_topics(on, topics)


@pytest.fixture
def topics(
    kafka: KafkaAddress, make_topics: Callable[..., TopicSettings], request: pytest.FixtureRequest
) -> TopicSettings:
    """Fresh topics on ``kafka``, of 4 request partitions or
    ``@pytest.mark.parametrize("topics", [12], indirect=True)``."""
    return make_topics(kafka, getattr(request, "param", REQUEST_PARTITIONS))


@pytest.fixture
def bucket(minio: MinioAddress) -> Iterator[str]:
    """A fresh bucket in ``minio``, removed with its contents afterwards."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    client = minio.client()
    client.make_bucket(bucket_name=name)
    yield name
    for item in client.list_objects(bucket_name=name, recursive=True):
        if item.object_name is not None:
            client.remove_object(bucket_name=name, object_name=item.object_name)
    client.remove_bucket(bucket_name=name)


@pytest.fixture
def make_arena(make_topics: Callable[..., TopicSettings], tmp_path: Path) -> Iterator[Callable[..., Arena]]:
    """``make_arena(kafka, minio, partitions=12, worker={...}, engine={...})``: workers on these services."""
    with ExitStack() as stack:

        def make(
            on: KafkaAddress | Kafka, minio: MinioAddress | Minio, partitions: int = 12, **overrides: Any
        ) -> Arena:
            address = minio if isinstance(minio, MinioAddress) else minio.address
            topics = make_topics(on, partitions)
            store = address.settings(topics.requests)
            arena = open_arena(on.settings, store, topics, tmp_path, overrides)
            arena.store.make_bucket(store.bucket)
            stack.callback(arena.close)
            stack.enter_context(arena.fleet)
            return arena

        yield make


@pytest.fixture
def arena(make_arena: Callable[..., Arena], kafka: KafkaAddress, minio: MinioAddress) -> Arena:
    """Workers with a simulated engine on the shared services."""
    return make_arena(kafka, minio)


@pytest.fixture
def own_arena(make_arena: Callable[..., Arena], own_kafka: Kafka, own_minio: Minio) -> Arena:
    """Workers with a simulated engine on services that the test may kill."""
    return make_arena(own_kafka, own_minio)


def _create(kafka: KafkaAddress | Kafka, topics: TopicSettings, partitions: int) -> None:
    """Create missing topics; the command's own patience is too short on a busy machine."""
    try:
        create_topics(kafka.settings, topics, request_partitions=partitions, replication_factor=1)
    except (TopicError, TimeoutError) as error:
        raise ServiceError(f"the topics could not be created: {error}") from error


def _probe_partitions(kafka: KafkaAddress | Kafka, topics: TopicSettings) -> None:
    """Wait until every partition is served; a broker announces a new one a moment earlier."""
    consumer = Consumer(reader_config(kafka.settings))
    try:
        described = consumer.list_topics(timeout=120).topics
        partitions = [
            TopicPartition(name, number, 0)
            for name in names_of(topics)
            for number in described[name].partitions
        ]
        refusals = [
            asked.error for asked in consumer.offsets_for_times(partitions, timeout=120) if asked.error
        ]
    except KafkaException as error:
        raise ServiceError(error.args[0].str()) from error
    finally:
        consumer.close()
    if refusals or not partitions:
        raise ServiceError(f"not every partition is served: {refusals}")


def _delete_topics(kafka: KafkaAddress, topics: TopicSettings) -> None:
    admin = AdminClient(common_config(kafka.settings))
    for answer in admin.delete_topics(names_of(topics)).values():
        with suppress(KafkaException):  # the test has deleted it
            answer.result(120)
