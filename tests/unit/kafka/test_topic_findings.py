from __future__ import annotations

import pytest

from zimage_stream.kafka.topics import TopicSpec, TopicState, compare, required_topics
from zimage_stream.settings import TopicSettings

REQUESTS, RESULTS, DEAD_LETTERS = required_topics(TopicSettings())


def exact(spec: TopicSpec, **differing: str) -> TopicState:
    named = {name.replace("_", "."): value for name, value in differing.items()}
    return TopicState(spec.partitions, {**spec.config, **named})


def test_what_is_made_is_what_is_needed() -> None:
    for spec in (REQUESTS, RESULTS, DEAD_LETTERS):
        assert list(compare(spec, exact(spec))) == []


def test_what_every_topic_must_be() -> None:
    assert (REQUESTS.partitions, RESULTS.partitions, DEAD_LETTERS.partitions) == (48, 12, 1)
    day = 86_400_000
    assert RESULTS.config["retention.ms"] == str(7 * day)
    assert DEAD_LETTERS.config["retention.ms"] == str(30 * day)
    assert RESULTS.config["max.message.bytes"] == DEAD_LETTERS.config["max.message.bytes"] == str(4 << 20)


def test_more_than_needed_is_no_finding() -> None:
    state = exact(RESULTS, retention_ms="-1", max_message_bytes=str(8 << 20))
    assert list(compare(RESULTS, TopicState(99, state.config))) == []


@pytest.mark.parametrize(
    ("spec", "state", "setting", "says"),
    [
        (RESULTS, None, "topic", "zimage topics create"),
        (REQUESTS, TopicState(4, REQUESTS.config), "partitions", "--partitions 48"),
        (RESULTS, exact(RESULTS, max_message_bytes="1048588"), "max.message.bytes", "=4194304"),
        (DEAD_LETTERS, exact(DEAD_LETTERS, retention_ms="604800000"), "retention.ms", "=2592000000"),
        (REQUESTS, exact(REQUESTS, max_message_bytes="10485760"), "max.message.bytes", "=4194304"),
        (REQUESTS, exact(REQUESTS, retention_bytes="1000"), "retention.bytes", "=-1"),
        (RESULTS, exact(RESULTS, cleanup_policy="compact"), "cleanup.policy", "=delete"),
    ],
)
def test_a_difference_is_named_with_its_remedy(
    spec: TopicSpec, state: TopicState | None, setting: str, says: str
) -> None:
    (finding,) = compare(spec, state)
    assert (finding.topic, finding.setting) == (spec.name, setting)
    assert says in str(finding)
    assert spec.name in str(finding)
