from __future__ import annotations

import time
import uuid

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.services import KafkaAddress
from zimage_stream.kafka.clients import common_config
from zimage_stream.kafka.topics import TopicError, check_topics, create_topics
from zimage_stream.settings import TopicSettings


def names() -> TopicSettings:
    run = uuid.uuid4().hex[:8]
    return TopicSettings(requests=f"r-{run}", results=f"e-{run}", dead_letters=f"d-{run}")


def test_topics_are_made_once_and_pass_their_check(kafka: KafkaAddress) -> None:
    topics = names()
    assert [finding.setting for finding in check_topics(kafka.settings, topics)] == ["topic"] * 3
    made = create_topics(kafka.settings, topics, request_partitions=6)
    assert made == dict.fromkeys((topics.requests, topics.results, topics.dead_letters), True)
    assert check_topics(kafka.settings, topics, request_partitions=6) == []
    assert set(create_topics(kafka.settings, topics, request_partitions=6).values()) == {False}
    (finding,) = check_topics(kafka.settings, topics)
    assert (finding.topic, finding.got, finding.needs) == (topics.requests, "6", "at least 48")


def test_a_changed_setting_is_found(kafka: KafkaAddress) -> None:
    topics = names()
    create_topics(kafka.settings, topics, request_partitions=1)
    entry = ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topics.results, incremental_configs=[entry])
    admin = AdminClient(common_config(kafka.settings))
    for answer in admin.incremental_alter_configs([resource]).values():
        answer.result(10)
    deadline = time.monotonic() + 30
    # The broker answers before it shows the change.
    while not (findings := check_topics(kafka.settings, topics, request_partitions=1)):
        assert time.monotonic() < deadline
    (finding,) = findings
    assert (finding.topic, finding.setting, finding.got) == (topics.results, "max.message.bytes", "1000000")


def test_what_the_broker_refuses_is_said(kafka: KafkaAddress) -> None:
    with pytest.raises(TopicError, match=r"could not be made.*[Rr]eplication"):
        create_topics(kafka.settings, names(), replication_factor=99)
