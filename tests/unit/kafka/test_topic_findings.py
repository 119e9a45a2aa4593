from __future__ import annotations

import pytest

from zimage_stream.kafka.topics import (
    Severity,
    TopicSpec,
    TopicState,
    compare,
    compare_cluster,
    compare_codec,
    compare_durability,
    required_topics,
)
from zimage_stream.settings import TopicSettings

REQUESTS, RESULTS, DEAD_LETTERS, CANCELLATIONS, PROGRESS = required_topics(TopicSettings())


def exact(spec: TopicSpec, **differing: str) -> TopicState:
    named = {name.replace("_", "."): value for name, value in differing.items()}
    return TopicState(spec.partitions, {**spec.config, **named})


def test_topics_are_created_as_required() -> None:
    for spec in required_topics(TopicSettings()):
        assert list(compare(spec, exact(spec))) == []


def test_requirements_of_every_topic() -> None:
    assert (REQUESTS.partitions, RESULTS.partitions, DEAD_LETTERS.partitions) == (48, 12, 1)
    day = 86_400_000
    assert CANCELLATIONS.partitions == REQUESTS.partitions
    assert CANCELLATIONS.config["retention.ms"] == REQUESTS.config["retention.ms"]
    assert (PROGRESS.partitions, PROGRESS.config["retention.ms"]) == (12, "3600000")
    assert RESULTS.config["retention.ms"] == str(7 * day)
    assert DEAD_LETTERS.config["retention.ms"] == str(30 * day)
    assert RESULTS.config["max.message.bytes"] == DEAD_LETTERS.config["max.message.bytes"] == str(4 << 20)


@pytest.mark.parametrize(
    ("spec", "consequence"),
    [(CANCELLATIONS, "no request can be cancelled"), (PROGRESS, "no progress is shown")],
)
def test_a_topic_that_an_older_deployment_does_not_have_is_a_warning(
    spec: TopicSpec, consequence: str
) -> None:
    (finding,) = compare(spec, None)
    assert finding.severity is Severity.WARNING
    assert consequence in str(finding)
    assert "zimage topics create" in finding.remedy


def test_progress_may_be_kept_for_longer() -> None:
    assert list(compare(PROGRESS, exact(PROGRESS, retention_ms="86400000"))) == []


def test_exceeding_the_requirements_is_not_a_finding() -> None:
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
        (REQUESTS, exact(REQUESTS, cleanup_policy="compact,delete"), "cleanup.policy", "=delete"),
        (DEAD_LETTERS, exact(DEAD_LETTERS, retention_bytes="1000"), "retention.bytes", "=-1"),
    ],
)
def test_a_difference_is_reported_with_its_remedy(
    spec: TopicSpec, state: TopicState | None, setting: str, says: str
) -> None:
    (finding,) = compare(spec, state)
    assert (finding.topic, finding.setting) == (spec.name, setting)
    assert says in str(finding)
    assert spec.name in str(finding)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "snappy"])
def test_any_compression_codec_makes_the_brokers_decompress_each_batch(codec: str) -> None:
    assert list(compare_codec(REQUESTS, exact(REQUESTS, compression_type=codec))) == []


@pytest.mark.parametrize("codec", ["producer", "uncompressed"])
def test_batches_that_the_brokers_do_not_decompress_are_a_warning(codec: str) -> None:
    (finding,) = compare_codec(REQUESTS, exact(REQUESTS, compression_type=codec))
    assert (finding.setting, finding.severity) == ("compression.type", Severity.WARNING)
    assert "--add-config compression.type=lz4" in finding.remedy


def kept(
    replicas: int, insync: int = 1, unclean: str = "false", leaderless: tuple[int, ...] = ()
) -> TopicState:
    config = {"min.insync.replicas": str(insync), "unclean.leader.election.enable": unclean}
    return TopicState(1, config, replicas, leaderless)


@pytest.mark.parametrize(
    ("state", "brokers", "settings"),
    [
        (kept(3, 2), 3, []),
        (kept(5, 3), 5, []),
        (kept(1), 3, ["replication factor"]),
        (kept(2), 3, ["replication factor", "min.insync.replicas"]),
        (kept(3), 3, ["min.insync.replicas"]),
        (kept(3, 4), 4, ["min.insync.replicas"]),
        (kept(1, 2), 1, ["min.insync.replicas"]),
        (kept(3, 2, "true"), 3, ["unclean.leader.election.enable"]),
        (kept(3, 2, leaderless=(0, 4)), 3, ["leader"]),
        # What a small cluster cannot do is reported once, for the cluster.
        (kept(1), 1, []),
        (kept(1), 2, []),
    ],
)
def test_settings_that_lose_or_refuse_requests_are_reported_with_a_remedy(
    state: TopicState, brokers: int, settings: list[str]
) -> None:
    found = list(compare_durability("t", state, brokers))
    assert [finding.setting for finding in found] == settings
    assert {finding.severity for finding in found} <= {Severity.ERROR}
    assert all(finding.remedy for finding in found)


def test_the_remedy_for_too_many_in_sync_replicas_allows_writes() -> None:
    (finding,) = compare_durability("t", kept(1, 2), 1)
    assert finding.remedy.endswith("min.insync.replicas=1")
    (finding,) = compare_durability("t", kept(3, 4), 3)
    assert finding.remedy.endswith("min.insync.replicas=2")


def test_a_small_cluster_is_a_warning() -> None:
    assert [str(finding).split(":")[0] for finding in compare_cluster(1)] == ["warning"]
    assert list(compare_cluster(3)) == []
