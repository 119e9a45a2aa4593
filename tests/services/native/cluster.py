"""Three Kafka brokers and the controller that watches over them.

The controller is a process of its own, and nobody takes it down. Machines that run Kafka in earnest keep
brokers and controllers apart, so that brokers that die take no metadata quorum with them. Were each broker
a controller, too, two dead ones of three would stop all elections, and every loss of two would be played
as that rarer accident.
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
"""Their node ids."""
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
    # A dead or frozen broker is missed soon; four JVMs on a busy machine miss a heartbeat at times.
    "broker.session.timeout.ms": "3000",
}


class _Node(Kafka):
    """A process of the cluster.

    Args:
        number: its node id.
        roles: of Kafka's ``process.roles``.
    """

    def __init__(self, folder: Path, number: int, roles: str) -> None:
        super().__init__(folder)
        self.number = number
        self._roles = roles
        self._quorum = ""

    def join(self, quorum: str) -> None:
        """Say who the controllers are, as ``controller.quorum.voters``; before the first start."""
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
        # The data folder is formatted as node 1's, and no two nodes may have a folder of the same id.
        properties = self.folder / "data" / "meta.properties"
        lines = [
            line for line in properties.read_text().splitlines() if line.startswith(("version", "cluster"))
        ]
        folder_id = urlsafe_b64encode(b"\0" + secrets.token_bytes(15)).rstrip(b"=").decode()
        lines += [f"node.id={self.number}", f"directory.id={folder_id}"]
        properties.write_text("\n".join(lines) + "\n")


class Controller(_Node):
    """Elects leaders and knows who lives."""

    title = "Kafka controller"
    heap_mb = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONTROLLER, "controller")

    @property
    def voter(self) -> str:
        """Itself, as ``controller.quorum.voters`` names it."""
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
    """One of the three; ``bootstrap_servers`` and ``settings`` are its own address alone."""

    title = "Kafka broker"
    heap_mb = 256

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number, "broker")

    def probe(self) -> None:
        """Return when the broker serves, whatever has become of the others."""
        if self.number not in self.address.metadata().brokers:
            raise ServiceError(f"broker {self.number} is not let in yet")

    def _properties(self) -> dict[str, str]:
        return super()._properties() | {"listeners": f"CLIENTS://127.0.0.1:{self.port}"}


class KafkaCluster:
    """Three brokers on loopback, each of which may be stopped, killed, frozen and started by itself.

    Every topic has three copies and takes a record when two have it, Kafka's own topics among them. Usable
    as a context manager.

    Args:
        folder: made if it is not there; whoever gives it removes it.
    """

    title = "Kafka, three brokers"

    def __init__(self, folder: Path) -> None:
        self._controller = Controller(folder / "controller")
        self.brokers = tuple(Broker(folder / f"broker-{number}", number) for number in BROKERS)
        for node in (self._controller, *self.brokers):
            node.join(self._controller.voter)

    @property
    def bootstrap_servers(self) -> str:
        """All three, the same after every restart."""
        return ",".join(broker.bootstrap_servers for broker in self.brokers)

    @property
    def settings(self) -> KafkaSettings:
        """What a client needs to be let in."""
        return KafkaSettings(bootstrap_servers=self.bootstrap_servers)

    @property
    def address(self) -> KafkaAddress:
        """The same for those who need no more than to reach it."""
        return KafkaAddress(self.settings)

    def start(self) -> None:
        """Start what does not run, and wait until all serve.

        Raises:
            ServiceError: a process did not come up; none is left running.
            ServiceMissingError: Kafka cannot be had on this machine.
        """
        launch_all((self._controller, *self.brokers))

    def stop(self) -> None:
        """End all in order, frozen ones too, and the controller when no broker needs it any more."""
        with ThreadPoolExecutor(len(self.brokers), "stop") as pool:
            list(pool.map(lambda broker: broker.stop(), self.brokers))
        self._controller.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def broker(self, number: int) -> Broker:
        """The broker with that node id."""
        return next(broker for broker in self.brokers if broker.number == number)

    def make_topic(
        self, name: str, copies: Sequence[Sequence[int]], config: Mapping[str, str] | None = None
    ) -> None:
        """Make a topic whose copies lie where they are told to.

        Args:
            copies: for each partition the brokers that have it, the first of which leads.
        """
        admin = AdminClient(common_config(self.settings))
        topic = NewTopic(
            name, len(copies), replica_assignment=[list(each) for each in copies], config=dict(config or {})
        )
        admin.create_topics([topic])[name].result(30)

    def leader(self, topic: str, partition: int) -> Broker | None:
        """Who leads the partition; ``None`` while nobody does.

        Raises:
            ServiceError: no broker answers, or there is no such partition.
        """
        leading = self._partition(topic, partition).leader
        return self.broker(leading) if leading >= 0 else None

    def in_sync(self, topic: str, partition: int) -> set[int]:
        """Node ids of the brokers that have all of the partition. Raises as :meth:`leader`."""
        return set(self._partition(topic, partition).isrs)

    def end(self, topic: str, partition: int) -> int:
        """The offset that the next record of the partition gets. Raises as :meth:`leader`."""
        consumer = Consumer(_quiet(reader_config(self.settings)))
        try:
            return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_PROBE_S)[1]
        except KafkaException as error:
            raise ServiceError(error.args[0].str()) from error
        finally:
            consumer.close()

    def group_coordinator(self, group: str) -> Broker | None:
        """Who keeps the group's members and offsets, once it has any. Else as :meth:`leader`."""
        return self._coordinator(OFFSETS, group)

    def transaction_coordinator(self, transactional_id: str) -> Broker | None:
        """Who keeps the state of that id's transactions, once there are any. Else as :meth:`leader`."""
        return self._coordinator(TRANSACTIONS, transactional_id)

    def transactional_ids(self, since: float) -> set[str]:
        """Ids that have begun or ended a transaction since then, an instant of ``time.time()``.

        They are read from Kafka's own log of them: clients and tools have their own ways to name theirs.

        Raises:
            ServiceError: not every broker that keeps some answers.
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
                    raise ServiceError(f"{TRANSACTIONS} is not answered for")
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
        """Wait until every partition has a leader, and all of its copies are there and have all of it.

        All brokers must say so: one that has been frozen believes at first that nothing has changed.

        Raises:
            ServiceError: they have not within that time.
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
            raise ServiceError(f"there is no {topic} yet: nobody has a coordinator")
        return self.leader(topic, _java_hash(name) % len(partitions))

    def _partition(self, topic: str, partition: int) -> PartitionMetadata:
        try:
            return self.address.metadata(topic).topics[topic].partitions[partition]
        except KeyError as error:
            raise ServiceError(f"there is no {topic}[{partition}]") from error


def _quiet(config: dict[str, Any]) -> dict[str, Any]:
    """For clients that ask while brokers are down, which need no line for each attempt."""
    return config | {"log_level": 0}


def _java_hash(text: str) -> int:
    """``String.hashCode`` without its sign, by which Kafka spreads groups and transactional ids."""
    value = 0
    for unit in memoryview(text.encode("utf-16-le")).cast("H"):
        value = (31 * value + unit) & 0xFFFF_FFFF
    # The smallest has no counterpart, and Kafka takes 0 for it.
    return min(value, -value & 0xFFFF_FFFF) & 0x7FFF_FFFF
