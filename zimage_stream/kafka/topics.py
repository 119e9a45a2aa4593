"""The topics: their requirements, their creation, and a check of existing ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from zimage_stream.errors import ZImageError
from zimage_stream.events.rules import MAX_RECORD_BYTES
from zimage_stream.kafka.clients import MAX_MESSAGE_BYTES, ConnectionStatus, create_admin, metadata_of
from zimage_stream.settings import KafkaSettings, TopicSettings

log = logging.getLogger(__name__)

REQUEST_PARTITIONS = 48
"""Default partitions of the requests topic; divisible by 1, 2, 3, 4, 6, 8, 12 and 16 workers."""

RESULT_PARTITIONS = 12
DEAD_LETTER_PARTITIONS = 1
PROGRESS_PARTITIONS = 12

REPLICAS = 3
MIN_INSYNC = 2
"""With three replicas, of which two acknowledge each write, losing one broker loses no record."""

CODEC = "lz4"
"""Compression of the requests topic, the same as our own producers use. A topic with a codec of its own makes
the brokers open each batch: they then assign the offsets in it themselves, and reject a corrupt one."""
_UNOPENED = ("producer", "uncompressed")
"""Values of ``compression.type`` with which brokers store some batches exactly as a producer made them."""

INTERNAL = ("__consumer_offsets", "__transaction_state")
"""Kafka's internal topics, which hold checkpoints and transactions; some clusters hide them."""

TIMEOUT_S = 10.0

_HOUR_MS = 3_600 * 1_000
_DAY_MS = 24 * _HOUR_MS
_BROKER_DEFAULT = -1

# The broker's value for "no limit".
_UNLIMITED = -1


class TopicError(ZImageError):
    """The broker refuses to create or describe a topic."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """The requirements on a topic.

    Attributes:
        at_least: lower bounds of configuration values, in the setting's own unit (bytes or milliseconds);
            -1 means unlimited.
        exactly: configuration values that are required as they are.
        at_most: upper bounds, in the same units.
        advised: values that a topic is created with but that are not required.
        without: what does not work while the topic is missing, as a phrase; ``None`` if nothing works.
    """

    name: str
    partitions: int
    at_least: Mapping[str, int]
    exactly: Mapping[str, str] = field(default_factory=lambda: {"cleanup.policy": "delete"})
    at_most: Mapping[str, int] = field(default_factory=dict)
    advised: Mapping[str, str] = field(default_factory=dict)
    without: str | None = None

    @property
    def config(self) -> dict[str, str]:
        """The configuration that the topic is created with."""
        at_least = {name: str(value) for name, value in self.at_least.items()}
        return {**at_least, **self.exactly, **self.advised}


@dataclass(frozen=True, slots=True)
class TopicState:
    """The state of a topic, as the brokers report it."""

    partitions: int
    config: Mapping[str, str]
    replication_factor: int = 1
    """Replicas of the partition that has the fewest."""
    leaderless: tuple[int, ...] = ()
    """Partitions without a leader, which cannot be read or written."""


class Severity(StrEnum):
    """Whether a finding breaks a guarantee, or only limits it because the cluster is small."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between a topic and its requirements, with the remedy."""

    topic: str
    setting: str
    got: str
    needs: str
    remedy: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        kind = "" if self.severity is Severity.ERROR else f"{self.severity}: "
        return f"{kind}{self.topic}: {self.setting} is {self.got}, needs {self.needs}. {self.remedy}"


def required_topics(names: TopicSettings, request_partitions: int = REQUEST_PARTITIONS) -> list[TopicSpec]:
    """The requirements on the topics.

    Results and dead letters allow 4 MiB; otherwise one oversized poison record would abort every transaction.
    """
    return [
        TopicSpec(
            names.requests,
            request_partitions,
            # Requests wait here until a worker is free: the log's size must never delete them.
            {
                "max.message.bytes": MAX_RECORD_BYTES,
                "retention.ms": 7 * _DAY_MS,
                "retention.bytes": _UNLIMITED,
            },
            # A larger record is not decoded, and does not fit into a dead letter.
            at_most={"max.message.bytes": MAX_MESSAGE_BYTES},
            advised={"compression.type": CODEC},
        ),
        TopicSpec(
            names.results,
            RESULT_PARTITIONS,
            {
                "max.message.bytes": MAX_MESSAGE_BYTES,
                "retention.ms": 7 * _DAY_MS,
                "retention.bytes": _UNLIMITED,
            },
        ),
        TopicSpec(
            names.dead_letters,
            DEAD_LETTER_PARTITIONS,
            {
                "max.message.bytes": MAX_MESSAGE_BYTES,
                "retention.ms": 30 * _DAY_MS,
                "retention.bytes": _UNLIMITED,
            },
        ),
        TopicSpec(
            names.cancellations,
            request_partitions,
            # Kept as long as the requests that they name.
            {"retention.ms": 7 * _DAY_MS, "retention.bytes": _UNLIMITED},
            without="no request can be cancelled",
        ),
        TopicSpec(
            names.progress,
            PROGRESS_PARTITIONS,
            {},
            advised={"retention.ms": str(_HOUR_MS)},
            without="no progress is shown",
        ),
    ]


def replayed_topic(names: TopicSettings) -> TopicSpec:
    """The topic in which ``zimage dead-letters replay`` records what it has replayed.

    It holds one key for each dead letter, never deletes them, and is created at the first replay.
    """
    return TopicSpec(f"{names.dead_letters}.replayed", 1, {}, {"cleanup.policy": "compact"})


def released_topic(names: TopicSettings) -> TopicSpec:
    """The topic in which ``zimage dead-letters release`` records codes that are no longer held back.

    It holds one key for each code, and is created at the first release.
    """
    return TopicSpec(f"{names.dead_letters}.released", 1, {}, {"cleanup.policy": "compact"})


def compare(spec: TopicSpec, state: TopicState | None) -> Iterator[Finding]:
    """Compare a topic with its requirements; the worst finding comes first. Pure."""
    if state is None:
        severity = Severity.ERROR if spec.without is None else Severity.WARNING
        purpose = f": without it {spec.without}" if spec.without else ""
        remedy = "Create it: zimage topics create"
        yield Finding(spec.name, "topic", "missing", f"to exist{purpose}", remedy, severity)
        return
    if state.partitions < spec.partitions:
        yield Finding(
            spec.name,
            "partitions",
            str(state.partitions),
            f"at least {spec.partitions}",
            f"Run: kafka-topics --alter --topic {spec.name} --partitions {spec.partitions}",
        )
    for name, needs in spec.at_least.items():
        got = int(state.config.get(name, _UNLIMITED))
        if got != _UNLIMITED and (got < needs or needs == _UNLIMITED):
            least = "no limit (-1)" if needs == _UNLIMITED else f"at least {needs}"
            yield Finding(spec.name, name, str(got), least, _alter(spec.name, name, str(needs)))
    for name, takes in spec.at_most.items():
        got = int(state.config.get(name, takes))
        if got > takes:
            yield Finding(spec.name, name, str(got), f"at most {takes}", _alter(spec.name, name, str(takes)))
    for name, value in spec.exactly.items():
        had = state.config.get(name, value)
        if had != value:
            yield Finding(spec.name, name, had, value, _alter(spec.name, name, value))


def compare_codec(spec: TopicSpec, state: TopicState) -> Iterator[Finding]:
    """Check whether the brokers store batches without opening them. Pure."""
    name = "compression.type"
    got = state.config.get(name, CODEC)
    if got in _UNOPENED:
        needs = (
            f"a codec, such as {CODEC}; otherwise a producer that builds its batches by hand can make "
            f"workers skip other producers' requests"
        )
        yield Finding(spec.name, name, got, needs, _alter(spec.name, name, CODEC), Severity.WARNING)


def compare_durability(name: str, state: TopicState, brokers: int) -> Iterator[Finding]:
    """Check for what would lose acknowledged records, or rejects records now, worst first. Pure.

    Args:
        brokers: number of brokers of the cluster; a topic need not have more replicas than they allow.
    """
    replicas, insync = state.replication_factor, int(state.config.get("min.insync.replicas", 1))
    if state.leaderless:
        numbers = ", ".join(map(str, state.leaderless))
        remedy = "Start the brokers that hold it; until then it cannot be read or written"
        yield Finding(name, "leader", f"none for partition {numbers}", "one for each", remedy)
    if insync > replicas:
        remedy = _alter(name, "min.insync.replicas", str(min(replicas, MIN_INSYNC)))
        needs = f"at most {replicas}, the number of replicas; otherwise all writes fail"
        yield Finding(name, "min.insync.replicas", str(insync), needs, remedy)
    if state.config.get("unclean.leader.election.enable") == "true":
        setting = "unclean.leader.election.enable"
        yield Finding(name, setting, "true", "false", _alter(name, setting, "false"))
    if brokers < REPLICAS:
        return
    if replicas < REPLICAS:
        remedy = f"Run: kafka-reassign-partitions --execute, with a plan of {REPLICAS} replicas per partition"
        yield Finding(name, "replication factor", str(replicas), f"at least {REPLICAS}", remedy)
    if insync < MIN_INSYNC <= replicas:
        remedy = _alter(name, "min.insync.replicas", str(MIN_INSYNC))
        yield Finding(name, "min.insync.replicas", str(insync), f"at least {MIN_INSYNC}", remedy)


def compare_cluster(brokers: int) -> Iterator[Finding]:
    """Warn about a cluster with too few brokers for production; development needs no more. Pure."""
    if brokers < REPLICAS:
        remedy = "This is enough for development; losing a broker loses acknowledged requests"
        needs = f"at least {REPLICAS} for production"
        yield Finding("the cluster", "brokers", str(brokers), needs, remedy, Severity.WARNING)


def compare_age(spec: TopicSpec, state: TopicState, oldest: timedelta) -> Iterator[Finding]:
    """Check whether the topic's oldest unresolved record is close to the end of its retention. Pure."""
    retention_ms = int(state.config.get("retention.ms", _UNLIMITED))
    age_ms = oldest / timedelta(milliseconds=1)
    if retention_ms != _UNLIMITED and age_ms * 2 > retention_ms:
        yield Finding(
            spec.name,
            "retention.ms",
            str(retention_ms),
            f"more: its oldest unresolved request is {oldest / timedelta(hours=1):.1f} h old and will be "
            f"deleted after {retention_ms / 3_600_000:.1f} h",
            _alter(spec.name, "retention.ms", str(2 * retention_ms)),
        )


def create_topics(
    kafka: KafkaSettings,
    names: TopicSettings,
    *,
    request_partitions: int = REQUEST_PARTITIONS,
    replication_factor: int = _BROKER_DEFAULT,
) -> dict[str, bool]:
    """Create the missing topics; existing ones stay unchanged.

    New topics with three replicas or more require two in-sync replicas for a write, even if the brokers'
    default is lower.

    Args:
        replication_factor: replicas of each partition; -1 means the broker's default.

    Returns:
        For each topic, whether this call created it.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicError: the broker refuses, for lack of permissions or of brokers for the replicas.
    """
    return make_topics(kafka, required_topics(names, request_partitions), replication_factor)


def make_topics(
    kafka: KafkaSettings, specs: Sequence[TopicSpec], replication_factor: int = _BROKER_DEFAULT
) -> dict[str, bool]:
    """Create those of the given topics that are missing. Returns and raises as :func:`create_topics`."""
    connection = ConnectionStatus(kafka)
    admin = create_admin(kafka, connection)
    present = metadata_of(admin, connection).topics
    wanted = [
        NewTopic(spec.name, spec.partitions, replication_factor, config=spec.config)
        for spec in specs
        if spec.name not in present
    ]
    made = {spec.name: spec.name not in present for spec in specs}
    answers = admin.create_topics(wanted, operation_timeout=TIMEOUT_S) if wanted else {}
    for name, answer in answers.items():
        try:
            answer.result(TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise TopicError(f"topic {name} could not be created: {error.args[0].str()}") from error
            made[name] = False
    _wait_until_known(connection, admin, made)
    _raise_min_insync(connection, admin, [name for name, new in made.items() if new])
    return made


def topic_exists(kafka: KafkaSettings, name: str) -> bool:
    """Whether the cluster has the topic; the check does not create it.

    Raises:
        BrokerUnavailableError: no broker answers.
    """
    connection = ConnectionStatus(kafka)
    admin = create_admin(kafka, connection)
    return name in metadata_of(admin, connection).topics


def check_topics(
    kafka: KafkaSettings,
    names: TopicSettings,
    *,
    request_partitions: int = REQUEST_PARTITIONS,
    oldest: timedelta | None = None,
) -> list[Finding]:
    """Compare the topics with their requirements.

    Args:
        oldest: age of the oldest unresolved request; ``None`` if there is none.

    Returns:
        The differences; an empty list if there are none.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicError: these credentials may not describe a topic.
    """
    connection = ConnectionStatus(kafka)
    admin = create_admin(kafka, connection)
    specs, notes = required_topics(names, request_partitions), replayed_topic(names)
    metadata = metadata_of(admin, connection)
    states = _states(metadata, admin, [spec.name for spec in specs])
    findings = [finding for spec in specs for finding in compare(spec, states.get(spec.name))]
    brokers = _count_brokers(metadata)
    # This topic exists only after its first use.
    states |= _states(metadata, admin, [notes.name])
    if notes.name in states:
        findings += compare(notes, states[notes.name])
    states |= _visible(metadata, admin, INTERNAL)
    for name, state in states.items():
        findings += compare_durability(name, state, brokers)
    findings += compare_cluster(brokers)
    requests = states.get(names.requests)
    if requests is not None:
        findings += compare_codec(specs[0], requests)
        findings += compare_age(specs[0], requests, oldest) if oldest is not None else ()
    return findings


def _wait_until_known(connection: ConnectionStatus, admin: AdminClient, names: Iterable[str]) -> None:
    """Wait until the metadata shows the topics.

    The controller answers before every broker knows of a new topic; without this wait the next submission
    could fail because the topic seems to be missing.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not all(name in metadata_of(admin, connection).topics for name in names):
        if time.monotonic() > deadline:
            raise TopicError("the topics have been created, but not every broker shows them yet")
        time.sleep(0.05)


def _raise_min_insync(connection: ConnectionStatus, admin: AdminClient, names: Sequence[str]) -> None:
    """Require two in-sync replicas for a write to those of these topics that have three and require fewer."""
    states = _visible(metadata_of(admin, connection), admin, names)
    low = [
        name
        for name, state in states.items()
        if state.replication_factor >= REPLICAS and int(state.config["min.insync.replicas"]) < MIN_INSYNC
    ]
    entry = ConfigEntry("min.insync.replicas", str(MIN_INSYNC), incremental_operation=AlterConfigOpType.SET)
    resources = [ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry]) for name in low]
    answers = admin.incremental_alter_configs(resources, request_timeout=TIMEOUT_S) if resources else {}
    for resource, answer in answers.items():
        try:
            answer.result(TIMEOUT_S)
        except KafkaException as error:
            remedy = _alter(resource.name, entry.name, str(MIN_INSYNC))
            reason = error.args[0].str()
            log.warning("%s: %s could not be set: %s. %s", resource.name, entry.name, reason, remedy)


def _count_brokers(metadata: ClusterMetadata) -> int:
    """Count the brokers that are up or known to hold a replica."""
    partitions = [each for topic in metadata.topics.values() for each in topic.partitions.values()]
    return len(metadata.brokers.keys() | {number for each in partitions for number in each.replicas})


def _visible(metadata: ClusterMetadata, admin: AdminClient, names: Iterable[str]) -> dict[str, TopicState]:
    """The states of the topics that these credentials may describe."""
    found: dict[str, TopicState] = {}
    for name in names:
        try:
            found |= _states(metadata, admin, [name])
        except TopicError as error:
            log.info("skipping a topic: %s", error)
    return found


def _states(metadata: ClusterMetadata, admin: AdminClient, names: Sequence[str]) -> dict[str, TopicState]:
    topics = metadata.topics
    there = [name for name in names if name in topics]
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in there]
    answers = admin.describe_configs(resources, request_timeout=TIMEOUT_S) if resources else {}
    states = {}
    for resource, answer in answers.items():
        try:
            entries = answer.result(TIMEOUT_S)
        except KafkaException as error:
            reason = error.args[0].str()
            raise TopicError(f"topic {resource.name} could not be described: {reason}") from error
        config = {name: entry.value for name, entry in entries.items() if entry.value is not None}
        partitions = topics[resource.name].partitions
        states[resource.name] = TopicState(
            len(partitions),
            config,
            min((len(each.replicas) for each in partitions.values()), default=0),
            tuple(number for number, each in sorted(partitions.items()) if each.leader < 0),
        )
    return states


def _alter(topic: str, name: str, value: str) -> str:
    return f"Run: kafka-configs --alter --topic {topic} --add-config {name}={value}"
