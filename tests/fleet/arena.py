"""Workers with a simulated engine on real Kafka and MinIO, and a record of everything sent to them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minio import Minio

from tests.fleet.checker import LetterPosition, Report, Watcher, check, position_of_key
from tests.fleet.workers import Fleet, until
from zimage_stream import PromptClient, PromptRequest, SubmitError
from zimage_stream.settings import KafkaSettings, Settings, StoreSettings, TopicSettings, environment_of


@dataclass
class Arena:
    """The topics, bucket, workers and sent records of one run."""

    settings: Settings
    fleet: Fleet
    store: Minio
    accepted: dict[LetterPosition, str]
    _watcher: Watcher | None = None

    def send(self, requests: list[PromptRequest]) -> list[str]:
        """Submit requests. Returns their ids."""
        with PromptClient(self.settings) as client:
            futures = [(request, client.submit_nowait(request)) for request in requests]
            for request, future in futures:
                try:
                    source = future.result(60)
                    place = source.partition, source.offset
                except SubmitError:
                    # Unless it was stored and its offset was not reported, this fails.
                    kafka, topic = client_config(self.settings.kafka), self.settings.topics.requests
                    place = position_of_key(kafka, topic, request.request_id.encode())
                self.accepted[place] = request.request_id
        return [request.request_id for request in requests]

    def report(self) -> Report:
        topics = self.settings.topics
        return check(client_config(self.settings.kafka), topics.results, topics.dead_letters, self.store)

    def answered(self) -> int:
        """Records that have a terminal event now."""
        report = self.report()
        return len(report.results.keys() | report.dead.keys())

    def seen(self) -> Set[LetterPosition]:
        """Positions of the records that have a terminal event; cheap to call repeatedly, but possibly a
        moment behind."""
        if self._watcher is None:
            topics = self.settings.topics
            self._watcher = Watcher(client_config(self.settings.kafka), topics.results, topics.dead_letters)
        return self._watcher.seen()

    def close(self) -> None:
        """Close the connections to the brokers."""
        if self._watcher is not None:
            self._watcher.close()

    def wait_answered(self, timeout_s: float, share: float = 1.0) -> Report:
        """Wait until this share of what was sent is answered, and return a report."""
        wanted = int(len(self.accepted) * share)
        until(lambda: len(self.seen()) >= wanted, timeout_s, f"{wanted} records are answered")
        return self.report()

    def assert_exactly_once(self, report: Report) -> None:
        accepted = set(self.accepted)
        assert not report.missing(accepted)
        assert not report.foreign(accepted)
        assert report.duplicates == []
        assert report.mismatched == []
        failed = {place for place, (result, *_) in report.results.items() if result["status"] == "FAILED"}
        assert failed == report.dead.keys()


def open_arena(
    kafka: KafkaSettings,
    store: StoreSettings,
    topics: TopicSettings,
    folder: Path,
    overrides: Mapping[str, Any],
) -> Arena:
    """An arena on these services, with a bucket and a group of its own.

    Args:
        overrides: settings of its workers by group, which override the arena's.
    """
    values: dict[str, Any] = {
        # Shorter sessions than the default, so that a death is noticed sooner.
        "kafka": kafka.model_dump()
        | {"extra": {"session.timeout.ms": "4000", "heartbeat.interval.ms": "1000"}},
        "topics": topics.model_dump(),
        "store": store.model_dump(),
        "engine": {"kind": "simulated", "simulated_ms": 320},
        "worker": {"group_id": topics.requests},
        "telemetry": {"port": 0, "log_level": "DEBUG"},
    }
    for group, chosen in overrides.items():
        values[group] = values.get(group, {}) | chosen
    settings = Settings.model_validate(values)
    secret = settings.store.secret_key
    client = Minio(
        settings.store.endpoint,
        settings.store.access_key,
        secret.get_secret_value() if secret else None,
        secure=settings.store.secure,
    )
    return Arena(settings, Fleet(environment_of(settings), folder), client, {})


def client_config(kafka: KafkaSettings) -> dict[str, str]:
    """The same address and credentials for a client other than the product's."""
    config = {"bootstrap.servers": kafka.bootstrap_servers, "security.protocol": kafka.security_protocol}
    if kafka.sasl_mechanism and kafka.sasl_username and kafka.sasl_password:
        config["sasl.mechanism"] = kafka.sasl_mechanism
        config["sasl.username"] = kafka.sasl_username
        config["sasl.password"] = kafka.sasl_password.get_secret_value()
    if kafka.ssl_ca_location:
        config["ssl.ca.location"] = str(kafka.ssl_ca_location)
    return config
