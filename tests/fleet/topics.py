"""Topics with limits that an operator may have widened."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.fleet.workers import until
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.topics import required_topics
from zimage_stream.settings import KafkaSettings, TopicSettings

EVER = 2**63 - 1


def topics_named(run: str) -> TopicSettings:
    """Topic names for one run; they begin with its name."""
    return TopicSettings(
        requests=f"{run}.requests",
        results=f"{run}.results",
        dead_letters=f"{run}.dead-letters",
        cancellations=f"{run}.cancellations",
        progress=f"{run}.progress",
    )


def names_of(topics: TopicSettings) -> list[str]:
    """The names of all topics that ``zimage topics create`` makes."""
    return [spec.name for spec in required_topics(topics)]


def take_anything(kafka: KafkaSettings, topic: str, max_bytes: int = 8 << 20) -> None:
    """Let a topic accept any timestamp, and records of this many bytes. Returns once that is in force.

    The brokers keep batches as they receive them: where they unpack them, they refuse timestamps before 1970.
    """
    values = {"message.timestamp.after.max.ms": EVER, "compression.type": "producer"}
    configure(kafka, topic, values | {"max.message.bytes": max_bytes})


def configure(kafka: KafkaSettings, topic: str, values: Mapping[str, object]) -> None:
    """Change a topic's settings. Returns once they are in force."""
    entries = [
        ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET)
        for name, value in values.items()
    ]
    admin = AdminClient(common_config(kafka))
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(120)

    def in_force() -> bool:
        (answer,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
        found = answer.result(120)
        return all(found[name].value == str(value) for name, value in values.items())

    until(in_force, 30, "the topic's settings are in force")
