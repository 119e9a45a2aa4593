"""Addresses and credentials of services, whoever runs them."""

from __future__ import annotations

import http.client
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import minio
import urllib3
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]
from pydantic import SecretStr

from tests.services.errors import ServiceError
from zimage_stream.kafka.clients import common_config
from zimage_stream.settings import KafkaSettings, RegistrySettings, StoreSettings

_POLL_S = 0.05
_PROBE_S = 2.0

# A probe is refused many times while a service starts; librdkafka would log each refusal.
_SILENT = logging.getLogger("tests.services.probe")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False


@dataclass(frozen=True)
class KafkaAddress:
    settings: KafkaSettings

    @property
    def bootstrap_servers(self) -> str:
        """``host:port``, comma separated."""
        return self.settings.bootstrap_servers

    def probe(self) -> None:
        """Return if every existing partition has a leader.

        Raises:
            ServiceError: not ready yet.
        """
        cluster = self.metadata()
        partitions = [p for topic in cluster.topics.values() for p in topic.partitions.values()]
        if not cluster.brokers or any(partition.leader < 0 for partition in partitions):
            raise ServiceError("partitions without a leader")

    def metadata(self, topic: str | None = None) -> ClusterMetadata:
        """Metadata from the brokers about themselves and all topics, or one.

        Raises:
            ServiceError: no broker responds.
        """
        config: dict[str, Any] = {**common_config(self.settings), **self.settings.extra, "logger": _SILENT}
        admin = AdminClient(config)
        try:
            return admin.list_topics(topic, timeout=_PROBE_S)
        except KafkaException as error:
            raise ServiceError(error.args[0].str()) from error


@dataclass(frozen=True)
class MinioAddress:
    endpoint: str
    """``host:port``."""
    access_key: str
    secret_key: str = field(repr=False)
    secure: bool = False

    @classmethod
    def from_url(cls, url: str) -> MinioAddress:
        """Parse ``http://key:secret@host:port``.

        Raises:
            ServiceError: a part is missing.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not (parts.port and parts.username and parts.password):
            raise ServiceError("the address of MinIO takes the form http://key:secret@host:port")
        return cls(
            parts.netloc.rpartition("@")[2], parts.username, parts.password, secure=parts.scheme == "https"
        )

    @property
    def url(self) -> str:
        """The URL that :meth:`from_url` parses."""
        scheme = "https" if self.secure else "http"
        return f"{scheme}://{self.access_key}:{self.secret_key}@{self.endpoint}"

    def settings(self, bucket: str) -> StoreSettings:
        """Store settings for this bucket."""
        return StoreSettings(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=SecretStr(self.secret_key),
            secure=self.secure,
            bucket=bucket,
        )

    def client(self, timeout_s: float = 10.0) -> minio.Minio:
        """A client that fails at once instead of retrying for minutes."""
        return minio.Minio(
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=self.secure,
            http_client=urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(timeout_s)),
        )

    def probe(self) -> None:
        """Return if requests with these credentials are served.

        Raises:
            ServiceError: not ready yet.
        """
        try:
            self.client(_PROBE_S).list_buckets()
        except (minio.error.MinioException, urllib3.exceptions.HTTPError) as error:
            raise ServiceError(str(error)) from error


@dataclass(frozen=True)
class RegistryAddress:
    url: str
    """Base URL of the Confluent-compatible API."""

    @property
    def settings(self) -> RegistrySettings:
        """Settings for a registry that starts out empty: the first publisher registers the schema."""
        return RegistrySettings(url=self.url, auto_register=True)

    def probe(self) -> None:
        """Return if subjects can be listed.

        Raises:
            ServiceError: not ready yet.
        """
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.netloc, timeout=_PROBE_S)
        try:
            connection.request("GET", f"{parts.path}/subjects")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(str(error)) from error
        finally:
            connection.close()
        if status != 200:
            raise ServiceError(f"{self.url}/subjects answered {status}")


Address = KafkaAddress | MinioAddress | RegistryAddress


def wait_until_ready(probe: Callable[[], None], timeout_s: float) -> None:
    """Call ``probe`` repeatedly until it returns.

    Raises:
        ServiceError: the time is up; the probe's last error.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return probe()
        except ServiceError as error:
            if time.monotonic() > deadline:
                raise ServiceError(f"not ready after {timeout_s:g} s: {error}") from error
        time.sleep(_POLL_S)
