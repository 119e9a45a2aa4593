"""``zimage status`` and ``zimage topics`` on three brokers, with one of them down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from typing import Any

from tests.fleet.topics import topics_named
from tests.fleet.workers import until
from tests.services.native.cluster import KafkaCluster
from zimage_stream.kafka.topics import Finding, Severity, TopicError, check_topics, create_topics
from zimage_stream.settings import TopicSettings


def names() -> TopicSettings:
    return topics_named(uuid.uuid4().hex[:8])


def errors(cluster: KafkaCluster, topics: TopicSettings, partitions: int) -> list[Finding]:
    found = check_topics(cluster.settings, topics, request_partitions=partitions)
    return [finding for finding in found if finding.severity is Severity.ERROR]


def found_errors(cluster: KafkaCluster, topics: TopicSettings) -> list[Finding] | None:
    """The errors found; ``None`` while a broker does not know yet what was created a moment ago."""
    try:
        return errors(cluster, topics, 2)
    except TopicError:
        return None


def zimage(cluster: KafkaCluster, topics: TopicSettings, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    env |= {
        "ZIMAGE_KAFKA__BOOTSTRAP_SERVERS": cluster.bootstrap_servers,
        "ZIMAGE_TOPICS__REQUESTS": topics.requests,
        "ZIMAGE_TOPICS__RESULTS": topics.results,
        "ZIMAGE_TOPICS__DEAD_LETTERS": topics.dead_letters,
        "ZIMAGE_TOPICS__CANCELLATIONS": topics.cancellations,
        "ZIMAGE_TOPICS__PROGRESS": topics.progress,
    }
    command = [sys.executable, "-m", "zimage_stream", *words]
    return subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=120)


def status(cluster: KafkaCluster, topics: TopicSettings) -> tuple[int, dict[str, Any], str]:
    done = zimage(cluster, topics, "status", "--json")
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_topics_are_created_to_survive_a_broker(own_cluster: KafkaCluster) -> None:
    topics = names()
    create_topics(own_cluster.settings, topics, request_partitions=2, replication_factor=3)
    until(lambda: found_errors(own_cluster, topics) == [], 60, "all is as it must be")
    weak = names()
    own_cluster.make_topic(weak.requests, [(1,), (2,)], {"min.insync.replicas": "1"})

    def found() -> set[str]:
        seen = found_errors(own_cluster, weak) or []
        return {each.setting for each in seen if each.topic == weak.requests}

    until(lambda: "replication factor" in found(), 60, "a single replica is found")


def test_a_partition_without_a_leader_is_reported_and_the_others_are_shown(own_cluster: KafkaCluster) -> None:
    topics = names()
    own_cluster.make_topic(topics.requests, [(1,), (3,)], {"min.insync.replicas": "1"})
    own_cluster.make_topic(topics.results, [(3,), (1,)], {"min.insync.replicas": "1"})
    until(lambda: own_cluster.leader(topics.requests, 1), 60, "the partition has a leader")
    # The first query about a group creates Kafka's own topic of offsets.
    until(lambda: status(own_cluster, topics)[0] == 0, 120, "all can be seen")
    own_cluster.broker(3).kill()
    until(lambda: own_cluster.leader(topics.requests, 1) is None, 60, "the partition has no leader")
    code, found, said = status(own_cluster, topics)
    assert code == 1, said
    assert found["leaderless"] == {topics.requests: [1], topics.results: [0]}
    assert [one["unresolved"] for one in found["partitions"]] == [0, None]
    done = zimage(own_cluster, topics, "cancel", "r")
    assert (done.returncode, done.stdout) == (1, "r: not found\n")
    assert f"{topics.requests}: partition 1 has no leader" in done.stderr
    settings = [
        finding.setting for finding in errors(own_cluster, topics, 2) if finding.topic == topics.requests
    ]
    assert "leader" in settings
    own_cluster.broker(3).start()
