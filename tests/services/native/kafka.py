"""Apache Kafka: a single node that is both broker and controller, without ZooKeeper."""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import SecretStr

from tests.services.addresses import KafkaAddress
from tests.services.native.cache import announce, cached, run_tool
from tests.services.native.java import fetch_libraries, find_java
from tests.services.native.ports import free_ports
from tests.services.native.process import NativeService, java_options
from zimage_stream.settings import KafkaSettings

VERSION = "4.2.2"
"""Not 4.3.0, 4.3.1 or 4.4.0, which skip the commit markers of partitions without a leader (KAFKA-20734)."""
_ARTIFACTS = [
    f"org.apache.kafka:kafka_2.13:{VERSION}",
    # Without a backend for SLF4J the broker would not report why it does not start.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5",
]
_JAVA = 17
_ARCHIVE = "classes.jsa"
_LOG4J = """<Configuration status="warn">
  <Appenders><Console name="out"><PatternLayout pattern="%d{ISO8601} %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""


def broker_properties(client_port: int, controller_port: int) -> dict[str, str]:
    """Settings of a single node, apart from its listeners and data folder."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"CLIENTS://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"CLIENTS://127.0.0.1:{client_port}",
        "inter.broker.listener.name": "CLIENTS",
        "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
        # One node cannot replicate; few partitions, because each costs time at first use.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "2",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        # A test of a lost member should not have to wait for 6 s; a client's default stays at 45 s.
        "group.min.session.timeout.ms": "1000",
        # A node that returns after kill -9 is admitted only when its dead self has timed out.
        "broker.heartbeat.interval.ms": "300",
        "broker.session.timeout.ms": "2000",
        # 128 MiB of a small heap by default.
        "log.cleaner.dedupe.buffer.size": str(4 << 20),
        "log.index.size.max.bytes": str(1 << 20),
    }


def prepare() -> Path:
    """The folder with Kafka's libraries and an empty formatted data folder, fetched if necessary.

    Raises:
        ServiceMissingError: there is no Java 17 or no Maven, or Kafka cannot be fetched.
    """
    return cached(f"kafka-{VERSION}", _build)


class Kafka(NativeService):
    """A broker on loopback that requires no credentials."""

    title = "Kafka"
    heap_mb = 512

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self._controller_port = free_ports(2)
        self._classes = ""

    @property
    def bootstrap_servers(self) -> str:
        """``127.0.0.1:port``, the same after every restart."""
        return f"127.0.0.1:{self.port}"

    @property
    def settings(self) -> KafkaSettings:
        """Client settings to connect."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    @property
    def address(self) -> KafkaAddress:
        """Address for tests that only need to connect."""
        return KafkaAddress(self.settings)

    def probe(self) -> None:
        self.address.probe()

    def _properties(self) -> dict[str, str]:
        own = {"log.dirs": str(self.folder / "data")}
        return broker_properties(self.port, self._controller_port) | own

    def _set_up(self) -> None:
        shutil.copytree(prepare() / "formatted", self.folder / "data")
        (self.folder / "log4j2.xml").write_text(_LOG4J)
        self._classes = self._class_option()
        _write_properties(self.folder / "server.properties", self._properties())

    def _command(self) -> Sequence[str]:
        return [
            str(find_java(_JAVA)),
            *java_options(self.heap_mb),
            self._classes,
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.xml'}",
            "-cp",
            str(prepare() / "libs" / "*"),
            "kafka.Kafka",
            str(self.folder / "server.properties"),
        ]

    def _environment(self) -> Mapping[str, str]:
        return {}

    def _class_option(self) -> str:
        """Option to load classes from the archive, which saves half the work of a start. A JVM that cannot
        read the archive continues without it."""
        return f"-XX:SharedArchiveFile={_classes()}"


class _ArchivingKafka(Kafka):
    """A node that writes the archive of classes when it ends."""

    def _class_option(self) -> str:
        return f"-XX:ArchiveClassesAtExit={self.folder / _ARCHIVE}"


class SecureKafka(Kafka):
    """A broker that requires a password (SASL/PLAIN) over TLS, with a certificate made for it.

    Attributes:
        username, password: the accepted credentials.
        ca_path: the certificate authority of the broker's certificate, PEM.
    """

    title = "Kafka with SASL_SSL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.username = "zimage"
        self.password = secrets.token_urlsafe(12)
        self.ca_path = folder / "ca.pem"

    @property
    def settings(self) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=self.bootstrap_servers,
            security_protocol="SASL_SSL",
            sasl_mechanism="PLAIN",
            sasl_username=self.username,
            sasl_password=SecretStr(self.password),
            ssl_ca_location=self.ca_path,
        )

    def _properties(self) -> dict[str, str]:
        login = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'username="{self.username}" password="{self.password}" user_{self.username}="{self.password}";'
        )
        return super()._properties() | {
            "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "listener.name.clients.plain.sasl.jaas.config": login,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_path),
        }

    def _set_up(self) -> None:
        super()._set_up()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_path)
        broker = authority.issue_cert("127.0.0.1", "localhost")
        # Kafka only reads keys in PKCS#8.
        key = load_pem_private_key(broker.private_key_pem.bytes(), None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(part.bytes() for part in broker.cert_chain_pems)
        (self.folder / "broker.pem").write_bytes(pem + chain)


def _build(folder: Path) -> None:
    announce(f"Kafka {VERSION}")
    libraries = folder / "libs"
    libraries.mkdir()
    fetch_libraries(_ARTIFACTS, libraries)
    # Formatting takes a JVM 2 s with the same result for every broker: done once, copied afterwards.
    properties = folder / "format.properties"
    _write_properties(properties, broker_properties(1, 2) | {"log.dirs": str(folder / "formatted")})
    cluster = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    tool = [str(find_java(_JAVA)), "-cp", str(libraries / "*"), "kafka.tools.StorageTool", "format"]
    run_tool([*tool, f"--cluster-id={cluster}", "--config", str(properties)], folder)


def _classes() -> Path:
    """The archive of Kafka's classes for this Java, created if necessary."""
    java = find_java(_JAVA).resolve()
    version = hashlib.sha256(f"{java} {java.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    return cached(f"kafka-{VERSION}-classes-{version}", _archive_classes) / _ARCHIVE


def _archive_classes(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="zimage-classes-") as temporary:
        broker = _ArchivingKafka(Path(temporary) / "kafka")
        with broker:
            pass
        shutil.move(broker.folder / _ARCHIVE, folder / _ARCHIVE)


def _write_properties(path: Path, properties: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
    path.chmod(0o600)
