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

from tests.fleet.topics import topics_named
from tests.fleet.workers import until
from tests.services import KafkaAddress
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.topics import (
    Finding,
    Severity,
    TopicError,
    check_topics,
    create_topics,
    make_topics,
    required_topics,
)
from zimage_stream.settings import TopicSettings


def names() -> TopicSettings:
    return topics_named(uuid.uuid4().hex[:8])


def test_topics_are_created_once_and_pass_their_check(kafka: KafkaAddress) -> None:
    topics = names()
    found = check_topics(kafka.settings, topics)
    missing = {finding.topic: finding.severity for finding in found if finding.setting == "topic"}
    needed = (topics.requests, topics.results, topics.dead_letters)
    assert missing == {
        **dict.fromkeys(needed, Severity.ERROR),
        **dict.fromkeys((topics.cancellations, topics.progress), Severity.WARNING),
    }
    made = create_topics(kafka.settings, topics, request_partitions=6)
    assert made == dict.fromkeys(missing, True)
    assert findings(kafka, topics, 6) == []
    assert set(create_topics(kafka.settings, topics, request_partitions=6).values()) == {False}
    assert [(finding.topic, finding.got, finding.needs) for finding in findings(kafka, topics)] == [
        (name, "6", "at least 48") for name in (topics.requests, topics.cancellations)
    ]


def test_a_deployment_from_before_cancellations_and_progress_passes_its_check(kafka: KafkaAddress) -> None:
    topics = names()
    older = [spec for spec in required_topics(topics, 1) if spec.without is None]
    make_topics(kafka.settings, older, replication_factor=1)
    found = check_topics(kafka.settings, topics, request_partitions=1)
    assert {finding.severity for finding in found} == {Severity.WARNING}
    assert {finding.topic for finding in found} == {"the cluster", topics.cancellations, topics.progress}


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
