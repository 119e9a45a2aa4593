"""The topics: what they must be, how they are made, and what differs from what is needed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from zimage_stream.errors import ZImageError
from zimage_stream.events.rules import MAX_RECORD_BYTES
from zimage_stream.kafka.clients import MAX_MESSAGE_BYTES, Trouble, common_config, metadata_of
from zimage_stream.settings import KafkaSettings, TopicSettings

REQUEST_PARTITIONS = 48
"""Divides evenly over 1, 2, 3, 4, 6, 8, 12 and 16 workers."""

RESULT_PARTITIONS = 12
DEAD_LETTER_PARTITIONS = 1

TIMEOUT_S = 10.0

_DAY_MS = 24 * 3_600 * 1_000
_BROKER_DEFAULT = -1

# What the broker says where a limit does not apply.
_UNLIMITED = -1


class TopicError(ZImageError):
    """The broker refuses to make or describe a topic."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic must be. ``at_least`` are configuration values in the setting's own unit (bytes or
    milliseconds), of which a topic may have more; -1 means unlimited. ``at_most`` is the other way round."""

    name: str
    partitions: int
    at_least: Mapping[str, int]
    exactly: Mapping[str, str] = field(default_factory=lambda: {"cleanup.policy": "delete"})
    at_most: Mapping[str, int] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, str]:
        """What the topic is made with."""
        return {**{name: str(value) for name, value in self.at_least.items()}, **self.exactly}


@dataclass(frozen=True, slots=True)
class TopicState:
    """What a topic is, as the broker tells it."""

    partitions: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between a topic and what is needed, with what to do about it."""

    topic: str
    setting: str
    got: str
    needs: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.got}, needs {self.needs}. {self.remedy}"


def required_topics(names: TopicSettings, request_partitions: int = REQUEST_PARTITIONS) -> list[TopicSpec]:
    """What the three topics must be.

    Results and dead letters take 4 MiB, or one oversized poison would abort every transaction.
    """
    return [
        TopicSpec(
            names.requests,
            request_partitions,
            # Requests wait here until a worker is free: size must never be what deletes them.
            {
                "max.message.bytes": MAX_RECORD_BYTES,
                "retention.ms": 7 * _DAY_MS,
                "retention.bytes": _UNLIMITED,
            },
            # What is larger is not decoded, and no dead letter carries it.
            at_most={"max.message.bytes": MAX_MESSAGE_BYTES},
        ),
        TopicSpec(
            names.results,
            RESULT_PARTITIONS,
            {"max.message.bytes": MAX_MESSAGE_BYTES, "retention.ms": 7 * _DAY_MS},
        ),
        TopicSpec(
            names.dead_letters,
            DEAD_LETTER_PARTITIONS,
            {"max.message.bytes": MAX_MESSAGE_BYTES, "retention.ms": 30 * _DAY_MS},
        ),
    ]


def replayed_topic(names: TopicSettings) -> TopicSpec:
    """Where ``zimage dead-letters replay`` notes what it has replayed: a key for each dead letter, kept
    as long as the topic is. It is made at the first replay."""
    return TopicSpec(f"{names.dead_letters}.replayed", 1, {}, {"cleanup.policy": "compact"})


def released_topic(names: TopicSettings) -> TopicSpec:
    """Where ``zimage dead-letters release`` notes what workers are to hold back no more: a key for each
    code. It is made at the first release."""
    return TopicSpec(f"{names.dead_letters}.released", 1, {}, {"cleanup.policy": "compact"})


def compare(spec: TopicSpec, state: TopicState | None) -> Iterator[Finding]:
    """What differs, worst first. Pure."""
    if state is None:
        yield Finding(spec.name, "topic", "missing", "to be there", "Make it: zimage topics create")
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


def compare_age(spec: TopicSpec, state: TopicState, oldest: timedelta) -> Iterator[Finding]:
    """What is wrong with a topic whose oldest unresolved record is so old. Pure."""
    retention_ms = int(state.config.get("retention.ms", _UNLIMITED))
    age_ms = oldest / timedelta(milliseconds=1)
    if retention_ms != _UNLIMITED and age_ms * 2 > retention_ms:
        yield Finding(
            spec.name,
            "retention.ms",
            str(retention_ms),
            f"more, for its oldest unresolved request is {oldest / timedelta(hours=1):.1f} h old and will be "
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
    """Make the topics that are not there; those that are stay as they are.

    Args:
        replication_factor: copies of each partition; -1 takes the broker's default.

    Returns:
        For each topic whether this call made it.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicError: the broker refuses, for lack of rights or of brokers to replicate to.
    """
    return make_topics(kafka, required_topics(names, request_partitions), replication_factor)


def make_topics(
    kafka: KafkaSettings, specs: Sequence[TopicSpec], replication_factor: int = _BROKER_DEFAULT
) -> dict[str, bool]:
    """Make those of these topics that are not there. Returns and raises as :func:`create_topics`."""
    trouble = Trouble(kafka)
    admin = AdminClient(common_config(kafka) | kafka.extra | {"error_cb": trouble})
    present = metadata_of(admin, trouble).topics
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
                raise TopicError(f"topic {name} could not be made: {error.args[0].str()}") from error
            made[name] = False
    _wait_until_known(trouble, admin, made)
    return made


def topic_exists(kafka: KafkaSettings, name: str) -> bool:
    """Whether the cluster has the topic; asking does not make it.

    Raises:
        BrokerUnavailableError: no broker answers.
    """
    trouble = Trouble(kafka)
    admin = AdminClient(common_config(kafka) | kafka.extra | {"error_cb": trouble})
    return name in metadata_of(admin, trouble).topics


def check_topics(
    kafka: KafkaSettings,
    names: TopicSettings,
    *,
    request_partitions: int = REQUEST_PARTITIONS,
    oldest: timedelta | None = None,
) -> list[Finding]:
    """What differs from what is needed; an empty list where all is well.

    Args:
        oldest: age of the oldest request that is not resolved yet; absent where there is none.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicError: the broker does not let these credentials look.
    """
    trouble = Trouble(kafka)
    admin = AdminClient(common_config(kafka) | kafka.extra | {"error_cb": trouble})
    specs = required_topics(names, request_partitions)
    states = _states(trouble, admin, [spec.name for spec in specs])
    findings = [finding for spec in specs for finding in compare(spec, states.get(spec.name))]
    requests = states.get(names.requests)
    if oldest is not None and requests is not None:
        findings += compare_age(specs[0], requests, oldest)
    return findings


def _wait_until_known(trouble: Trouble, admin: AdminClient, names: Iterable[str]) -> None:
    """The controller answers before every broker knows of a topic; whoever submits next must not be
    told that it is missing."""
    deadline = time.monotonic() + TIMEOUT_S
    while not all(name in metadata_of(admin, trouble).topics for name in names):
        if time.monotonic() > deadline:
            raise TopicError("the topics are made, but not every broker shows them yet")
        time.sleep(0.05)


def _states(trouble: Trouble, admin: AdminClient, names: Sequence[str]) -> dict[str, TopicState]:
    topics = metadata_of(admin, trouble).topics
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
        states[resource.name] = TopicState(len(topics[resource.name].partitions), config)
    return states


def _alter(topic: str, name: str, value: str) -> str:
    return f"Run: kafka-configs --alter --topic {topic} --add-config {name}={value}"
