"""Three Kafka brokers and a controller.

The controller is a process of its own that tests never take down. Production clusters keep brokers and
controllers apart, so that dying brokers take no metadata quorum with them. If each broker were also a
controller, two dead ones of three would stop all elections, and every loss of two brokers would be tested as
that rarer accident.
"""

from __future__ import annotations

import secrets
import socket
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, PartitionMetadata  # type: ignore[attr-defined]

from tests.services.addresses import KafkaAddress, wait_until_ready
from tests.services.errors import ServiceError
from tests.services.native.kafka import Kafka
from tests.services.native.process import START_TIMEOUT_S, launch_all
from zimage_stream.kafka.clients import common_config, reader_config
from zimage_stream.settings import KafkaSettings

BROKERS = (1, 2, 3)
"""Node ids of the brokers."""
COPIES = len(BROKERS)
OFFSETS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"
_CONTROLLER = 100
_PROBE_S = 2.0
_REPLICATED = {
    "default.replication.factor": str(COPIES),
    "min.insync.replicas": "2",
    "offsets.topic.replication.factor": str(COPIES),
    "transaction.state.log.replication.factor": str(COPIES),
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": str(COPIES),
    "share.coordinator.state.topic.min.isr": "2",
    # A dead or frozen broker is missed soon; four JVMs on a busy machine sometimes miss a heartbeat.
    "broker.session.timeout.ms": "3000",
}


class _Node(Kafka):
    """A process of the cluster.

    Args:
        number: its node id.
        roles: value of Kafka's ``process.roles``.
    """

    def __init__(self, folder: Path, number: int, roles: str) -> None:
        super().__init__(folder)
        self.number = number
        self._roles = roles
        self._quorum = ""

    def join(self, quorum: str) -> None:
        """Set the controllers, as in ``controller.quorum.voters``; call it before the first start."""
        self._quorum = quorum

    def _properties(self) -> dict[str, str]:
        of_node = {
            "process.roles": self._roles,
            "node.id": str(self.number),
            "controller.quorum.voters": self._quorum,
        }
        return super()._properties() | _REPLICATED | of_node

    def _set_up(self) -> None:
        super()._set_up()
        # The data folder is formatted as node 1's, and no two nodes may share a folder id.
        properties = self.folder / "data" / "meta.properties"
        lines = [
            line for line in properties.read_text().splitlines() if line.startswith(("version", "cluster"))
        ]
        folder_id = urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).rstrip(b"=").decode()
        lines += [f"node.id={self.number}", f"directory.id={folder_id}"]
        properties.write_text("\n".join(lines) + "\n")


class Controller(_Node):
    """The controller: elects leaders and tracks which brokers are alive."""

    title = "Kafka controller"
    heap_mb = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONTROLLER, "controller")

    @property
    def voter(self) -> str:
        """This controller's entry in ``controller.quorum.voters``."""
        return f"{self.number}@127.0.0.1:{self._controller_port}"

    def probe(self) -> None:
        try:
            socket.create_connection(("127.0.0.1", self._controller_port), _PROBE_S).close()
        except OSError as error:
            raise ServiceError(str(error)) from error

    def _properties(self) -> dict[str, str]:
        of_brokers = ("advertised.listeners", "inter.broker.listener.name")
        kept = {name: value for name, value in super()._properties().items() if name not in of_brokers}
        return kept | {"listeners": f"CONTROLLER://127.0.0.1:{self._controller_port}"}


class Broker(_Node):
    """One of the three brokers; ``bootstrap_servers`` and ``settings`` have its own address alone."""

    title = "Kafka broker"
    heap_mb = 256

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number, "broker")

    def probe(self) -> None:
        """Return if this broker serves, whatever the state of the others."""
        if self.number not in self.address.metadata().brokers:
            raise ServiceError(f"broker {self.number} has not been admitted yet")

    def _properties(self) -> dict[str, str]:
        return super()._properties() | {"listeners": f"CLIENTS://127.0.0.1:{self.port}"}


class KafkaCluster:
    """Three brokers on loopback, each of which can be stopped, killed, frozen and started on its own.

    Every topic, Kafka's own included, has three copies and accepts a record when two have it. Usable as a
    context manager.

    Args:
        folder: created if missing; the caller removes it.
    """

    title = "Kafka, three brokers"

    def __init__(self, folder: Path) -> None:
        self._controller = Controller(folder / "controller")
        self.brokers = tuple(Broker(folder / f"broker-{number}", number) for number in BROKERS)
        for node in (self._controller, *self.brokers):
            node.join(self._controller.voter)

    @property
    def bootstrap_servers(self) -> str:
        """Addresses of all three, the same after every restart."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def settings(self) -> KafkaSettings:
        """Client settings to connect."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    @property
    def address(self) -> KafkaAddress:
        """Address for tests that only need to connect."""
        return KafkaAddress(self.settings)

    def start(self) -> None:
        """Start whatever is not running, and wait until all serve.

        Raises:
            ServiceError: a process did not come up; none is left running.
            ServiceMissingError: Kafka is unavailable on this machine.
        """
        launch_all((self._controller, *self.brokers))

    def stop(self) -> None:
        """Shut down all processes, frozen ones included; the controller last, since brokers need it."""
        with ThreadPoolExecutor(len(self.brokers), "stop") as pool:
            list(pool.map(lambda broker: broker.stop(), self.brokers))
        self._controller.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def broker(self, number: int) -> Broker:
        """The broker with this node id."""
        return next(broker for broker in self.brokers if broker.number == number)

    def make_topic(
        self, name: str, copies: Sequence[Sequence[int]], config: Mapping[str, str] | None = None
    ) -> None:
        """Create a topic with the given placement of copies.

        Args:
            copies: for each partition, the brokers that hold it, leader first.
        """
        admin = AdminClient(common_config(self.settings))
        topic = NewTopic(
            name, len(copies), replica_assignment=[list(each) for each in copies], config=dict(config or {})
        )
        admin.create_topics([topic])[name].result(30)

    def leader(self, topic: str, partition: int) -> Broker | None:
        """The leader of the partition; ``None`` while there is none.

        Raises:
            ServiceError: no broker responds, or the partition does not exist.
        """
        leading = self._partition(topic, partition).leader
        return self.broker(leading) if leading >= 0 else None

    def in_sync(self, topic: str, partition: int) -> set[int]:
        """Node ids of the brokers in sync with the partition. Raises as :meth:`leader`."""
        return set(self._partition(topic, partition).isrs)

    def end(self, topic: str, partition: int) -> int:
        """Offset of the partition's next record. Raises as :meth:`leader`."""
        consumer = Consumer(_quiet(reader_config(self.settings)))
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_PROBE_S)[1]
        except KafkaException as error:
            raise ServiceError(error.args[0].str()) from error
        finally:
            consumer.close()

    def group_coordinator(self, group: str) -> Broker | None:
        """The group's coordinator, once there is one. Otherwise as :meth:`leader`."""
        return self._coordinator(OFFSETS, group)

    def transaction_coordinator(self, transactional_id: str) -> Broker | None:
        """The coordinator of the id's transactions, once there are any. Otherwise as :meth:`leader`."""
        return self._coordinator(TRANSACTIONS, transactional_id)

    def transactional_ids(self, since: float) -> set[str]:
        """Transactional ids that have begun or ended a transaction since an instant of ``time.time()``.

        They are read from Kafka's own log of transactions: clients and tools name theirs in different ways.

        Raises:
            ServiceError: not every broker that holds part of the log responds.
        """
        consumer = Consumer(_quiet(reader_config(self.settings)) | {"enable.partition.eof": True})
        try:
            numbers = self.address.metadata(TRANSACTIONS).topics[TRANSACTIONS].partitions
            asked = [TopicPartition(TRANSACTIONS, number, int(since * 1e3)) for number in numbers]
            begins = consumer.offsets_for_times(asked, timeout=_PROBE_S)
            consumer.assign(begins)
            found: set[str] = set()
            open_ = {at.partition for at in begins}
            while open_:
                message = consumer.poll(_PROBE_S)
                if message is None:
                    raise ServiceError(f"{TRANSACTIONS} is not fully readable")
                if error := message.error():
                    if error.code() != KafkaError._PARTITION_EOF:
                        raise ServiceError(error.str())
                    open_.discard(message.partition())
                else:
                    # A version and a length of two bytes each, then the id.
                    found.add(bytes(message.key() or b"")[4:].decode())
            return found
        except KafkaException as error:
            raise ServiceError(error.args[0].str()) from error
        finally:
            consumer.close()

    def wait_in_sync(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every partition has a leader and all of its copies are in sync.

        All brokers must confirm it: one that was frozen believes at first that nothing has changed.

        Raises:
            ServiceError: they are not within that time.
        """
        wait_until_ready(self._probe_in_sync, timeout_s)

    def _probe_in_sync(self) -> None:
        behind = {
            f"{topic.topic}[{number}]"
            for broker in self.brokers
            for topic in broker.address.metadata().topics.values()
            for number, partition in topic.partitions.items()
            if partition.leader < 0 or set(partition.isrs) != set(partition.replicas)
        }
        if behind:
            raise ServiceError(f"not in sync: {', '.join(sorted(behind))}")

    def _coordinator(self, topic: str, name: str) -> Broker | None:
        partitions = self.address.metadata(topic).topics[topic].partitions
        if not partitions:
            raise ServiceError(f"there is no {topic} yet, so there is no coordinator")
        return self.leader(topic, _java_hash(name) % len(partitions))

    def _partition(self, topic: str, partition: int) -> PartitionMetadata:
        try:
            return self.address.metadata(topic).topics[topic].partitions[partition]
        except KeyError as error:
            raise ServiceError(f"there is no {topic}[{partition}]") from error


def _quiet(config: dict[str, Any]) -> dict[str, Any]:
    """Client settings while brokers are down, without a log line for each attempt."""
    return config | {"log_level": 0}


def _java_hash(text: str) -> int:
    """``String.hashCode`` without its sign, by which Kafka distributes groups and transactional ids."""
    value = 0
    for unit in memoryview(text.encode("utf-16-le")).cast("H"):
        value = (31 * value + unit) & 0xFFFF_FFFF
    # The smallest number has no positive counterpart, and Kafka uses 0 for it.
    return min(value, -value & 0xFFFF_FFFF) & 0x7FFF_FFFF
