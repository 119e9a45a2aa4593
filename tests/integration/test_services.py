"""The services keep the promises that tests rely on."""

from __future__ import annotations

import io
import ipaddress
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from pydantic import SecretStr

from tests.services import (
    Kafka,
    KafkaAddress,
    Minio,
    MinioAddress,
    Registry,
    RegistryAddress,
    SecureKafka,
    ServiceError,
)
from tests.services.native.process import launch_all, stop_all
from zimage_stream.kafka.clients import common_config, producer_config, reader_config
from zimage_stream.settings import TopicSettings

ROOT = Path(__file__).parents[2]
SCHEMA = Schema('{"type": "record", "name": "Thing", "fields": [{"name": "a", "type": "int"}]}', "AVRO")
LISTENING = "0A"


class Services(NamedTuple):
    kafka: Kafka
    minio: Minio
    registry: Registry


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """All three services, native; every test leaves them running."""
    folder = tmp_path_factory.mktemp("services")
    all_three = Services(Kafka(folder / "kafka"), Minio(folder / "minio"), Registry(folder / "registry"))
    launch_all(all_three)
    yield all_three
    stop_all(all_three)


def test_kafka_keeps_its_records_and_address_after_a_kill(
    services: Services, make_topics: Callable[..., TopicSettings]
) -> None:
    kafka = services.kafka
    address, session = kafka.bootstrap_servers, kafka.pid
    topics = make_topics(kafka, partitions=1)
    _publish(kafka, topics.requests, b"before")

    kafka.kill()
    assert _processes_of(session) == []
    kafka.start()
    _publish(kafka, topics.requests, b"after")

    assert kafka.bootstrap_servers == address
    assert _values(kafka, topics.requests, 2) == [b"before", b"after"]


def test_minio_keeps_its_objects_and_address_after_a_restart(services: Services) -> None:
    minio = services.minio
    endpoint, session = minio.endpoint, minio.pid
    client = minio.address.client()
    client.make_bucket(bucket_name="kept")
    client.put_object(bucket_name="kept", object_name="a/b", data=io.BytesIO(b"picture"), length=7)

    minio.restart()

    assert minio.endpoint == endpoint
    assert _processes_of(session) == []
    response = client.get_object(bucket_name="kept", object_name="a/b")
    assert response.read() == b"picture"
    response.close()


def test_the_registry_keeps_its_ids_after_a_restart(services: Services) -> None:
    registry, session = services.registry, services.registry.pid
    with SchemaRegistryClient({"url": registry.url}) as client:
        schema_id = client.register_schema("things-value", SCHEMA)

    registry.restart()

    assert _processes_of(session) == []
    with SchemaRegistryClient({"url": registry.url}) as client:
        kept = client.get_schema(schema_id).schema_str
    assert kept is not None
    assert '"Thing"' in kept


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_listens_beyond_loopback(services: Services) -> None:
    for service in services:
        addresses = _listening(service.pid)
        assert service.port in {port for _, port in addresses}
        assert [str(host) for host, _ in addresses if not host.is_loopback] == []


def test_a_paused_service_responds_again_once_resumed(services: Services) -> None:
    minio = services.minio
    answers: list[bool] = []
    caller = threading.Thread(target=lambda: answers.append(minio.address.client().bucket_exists("none")))

    minio.pause()
    caller.start()
    caller.join(0.5)
    paused = list(answers)
    minio.resume()
    caller.join(120)

    assert paused == []
    assert answers == [False]


def test_a_service_started_by_a_thread_outlives_it(tmp_path: Path) -> None:
    minio = Minio(tmp_path / "minio")
    starter = threading.Thread(target=minio.start)
    starter.start()
    starter.join(120)
    try:
        minio.probe()
        minio.pause()
    finally:
        # A paused service also stops cleanly.
        minio.stop()
    with pytest.raises(ServiceError, match="MinIO does not run"):
        _ = minio.pid


def test_a_service_that_cannot_start_is_quoted_and_leaves_nothing_behind(tmp_path: Path) -> None:
    minio = Minio(tmp_path / "minio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", minio.port))
        with pytest.raises(ServiceError, match=r"(?s)MinIO.*last lines of .*port is already in use"):
            minio.start()
    with minio:
        minio.probe()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child outlives an aborted parent")
def test_a_service_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from tests.services import Minio\n"
        "service = Minio(pathlib.Path(sys.argv[1])); service.start(); print(service.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "minio")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        session = int(parent.stdout.readline())
        assert _processes_of(session) == [session]
        parent.kill()

    _eventually(lambda: _processes_of(session) == [])


def test_run_starts_services_for_a_command_and_returns_its_exit_code() -> None:
    program = (
        "import os, sys; from tests.services import MinioAddress\n"
        "assert os.environ['ZIMAGE_KAFKA__BOOTSTRAP_SERVERS'] == os.environ['ZIMAGE_TEST_KAFKA']\n"
        "minio = MinioAddress.from_url(os.environ['ZIMAGE_TEST_MINIO'])\n"
        "assert minio.client().bucket_exists(os.environ['ZIMAGE_STORE__BUCKET'])\n"
        "assert sys.argv[1:] == ['--flag']\n"
        "print(minio.endpoint); sys.exit(7)"
    )
    run = [sys.executable, "-m", "tests.services", "run", "--no-registry", "--"]

    done = subprocess.run(
        [*run, sys.executable, "-c", program, "--flag"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 7, done.stderr
    host, _, port = done.stdout.strip().rpartition(":")
    with socket.socket() as probe:
        assert probe.connect_ex((host, int(port))) != 0, "MinIO was left running"


def test_services_run_until_they_are_stopped(tmp_path: Path) -> None:
    env_file = tmp_path / "services.env"
    command = [sys.executable, "-m", "tests.services", "--no-registry", "--write-env", str(env_file)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as serving:
        _eventually(env_file.exists, timeout_s=240)
        text = env_file.read_text()
        exported = dict(re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE))
        address = shlex.split(exported["ZIMAGE_KAFKA__BOOTSTRAP_SERVERS"])[0]
        cluster = AdminClient({"bootstrap.servers": address}).list_topics(timeout=120)
        serving.send_signal(signal.SIGTERM)
        printed, _ = serving.communicate(timeout=120)

    assert len(cluster.brokers) == 1
    assert printed == text
    assert env_file.stat().st_mode & 0o077 == 0
    assert serving.returncode == 0


@pytest.mark.parametrize("topics", [3], indirect=True)
def test_topics_are_fresh_and_have_the_requested_partitions(
    kafka: KafkaAddress, topics: TopicSettings
) -> None:
    cluster = AdminClient(common_config(kafka.settings)).list_topics(timeout=120)

    assert len(cluster.topics[topics.requests].partitions) == 3
    assert {topics.results, topics.dead_letters} < set(cluster.topics)
    low, high = Consumer(reader_config(kafka.settings)).get_watermark_offsets(
        TopicPartition(topics.requests, 0), timeout=120
    )
    assert (low, high) == (0, 0)


def test_a_bucket_accepts_objects(minio: MinioAddress, bucket: str) -> None:
    settings = minio.settings(bucket)
    assert (settings.endpoint, settings.bucket) == (minio.endpoint, bucket)

    minio.client().put_object(bucket_name=bucket, object_name="a", data=io.BytesIO(b"1"), length=1)

    assert [item.object_name for item in minio.client().list_objects(bucket_name=bucket)] == ["a"]


def test_the_shared_registry_serves(registry: RegistryAddress) -> None:
    with SchemaRegistryClient({"url": registry.url}) as client:
        schema_id = client.register_schema("shared-value", SCHEMA)
        assert client.get_latest_version("shared-value").schema_id == schema_id


def test_the_secure_broker_requires_the_password(secure_kafka: SecureKafka) -> None:
    secure_kafka.probe()

    wrong = secure_kafka.settings.model_copy(update={"sasl_password": SecretStr("wrong")})
    with pytest.raises(ServiceError):
        KafkaAddress(wrong).probe()


def _publish(kafka: Kafka, topic: str, value: bytes) -> None:
    producer = Producer(producer_config(kafka.settings))
    producer.produce(topic, value=value)
    assert producer.flush(120) == 0


def _values(kafka: Kafka, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer(reader_config(kafka.settings))
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        values = [message.value() for message in consumer.consume(count, timeout=120) if not message.error()]
    finally:
        consumer.close()
    return [value if value is None else bytes(value) for value in values]


def _processes_of(session: int) -> list[int]:
    """The processes of a session: every service has one, with all that it has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name, in parentheses, may contain spaces; the session is the fourth field after it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _listening(pid: int) -> set[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    sockets = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            sockets.add(os.readlink(descriptor))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == LISTENING and f"socket:[{inode}]" in sockets:
                host, _, port = local.partition(":")
                found.add((_host(host), int(port, 16)))
    return found


def _host(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """/proc lists addresses as hexadecimal words in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return getattr(address, "ipv4_mapped", None) or address


def _eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
