from __future__ import annotations

import uuid

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.fleet.workers import until
from tests.services import KafkaAddress
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.topics import Finding, Severity, TopicError, check_topics, create_topics
from zimage_stream.settings import TopicSettings


def names() -> TopicSettings:
    run = uuid.uuid4().hex[:8]
    return TopicSettings(requests=f"r-{run}", results=f"e-{run}", dead_letters=f"d-{run}")


def test_topics_are_created_once_and_pass_their_check(kafka: KafkaAddress) -> None:
    topics = names()
    assert [finding.setting for finding in findings(kafka, topics)] == ["topic"] * 3
    made = create_topics(kafka.settings, topics, request_partitions=6)
    assert made == dict.fromkeys((topics.requests, topics.results, topics.dead_letters), True)
    assert findings(kafka, topics, 6) == []
    assert set(create_topics(kafka.settings, topics, request_partitions=6).values()) == {False}
    (finding,) = findings(kafka, topics)
    assert (finding.topic, finding.got, finding.needs) == (topics.requests, "6", "at least 48")


def findings(kafka: KafkaAddress, topics: TopicSettings, partitions: int = 48) -> list[Finding]:
    """What must be fixed, without the warning about the tests' single broker."""
    found = check_topics(kafka.settings, topics, request_partitions=partitions)
    warnings = [finding for finding in found if finding.severity is Severity.WARNING]
    assert [(finding.topic, finding.setting) for finding in warnings] == [("the cluster", "brokers")]
    return [finding for finding in found if finding not in warnings]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max.message.bytes", "1000000"),
        ("min.insync.replicas", "2"),
        ("unclean.leader.election.enable", "true"),
        ("retention.bytes", "1000000"),
        ("cleanup.policy", "compact,delete"),
    ],
)
def test_a_changed_setting_is_found(kafka: KafkaAddress, setting: str, value: str) -> None:
    topics = names()
    create_topics(kafka.settings, topics, request_partitions=1)
    entry = ConfigEntry(setting, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topics.results, incremental_configs=[entry])
    admin = AdminClient(common_config(kafka.settings))
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(120)
    # The broker acknowledges the change before it is visible.
    until(lambda: findings(kafka, topics, 1), 30, "the change is visible")
    (finding,) = findings(kafka, topics, 1)
    assert (finding.topic, finding.setting, finding.got) == (topics.results, setting, value)


def test_the_brokers_refusal_is_reported(kafka: KafkaAddress) -> None:
    with pytest.raises(TopicError, match=r"could not be created.*[Rr]eplication"):
        create_topics(kafka.settings, names(), replication_factor=99)
