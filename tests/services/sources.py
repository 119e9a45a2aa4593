"""Where a test's service comes from: an address given by the user, a container, a plain process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tests.services import containers
from tests.services.addresses import Address, KafkaAddress, MinioAddress, RegistryAddress, wait_until_ready
from tests.services.errors import ServiceError
from tests.services.native.kafka import Kafka
from tests.services.native.minio import Minio
from tests.services.native.registry import Registry
from zimage_stream.settings import KafkaSettings

_GIVEN_TIMEOUT_S = 10.0


class Source(Enum):
    GIVEN = "given"
    CONTAINER = "container"
    NATIVE = "native"


class Absence(Enum):
    """What a test does that cannot have its service."""

    SKIP = "skip"
    FAIL = "fail"


def choose_source(given: str | None, docker_answers: Callable[[], bool]) -> Source:
    """The first that can be had; Docker is asked only where no address is given."""
    if given:
        return Source.GIVEN
    return Source.CONTAINER if docker_answers() else Source.NATIVE


def on_absence(environment: Mapping[str, str]) -> Absence:
    """On a person's machine the test is skipped; in CI a test that did not run is an error."""
    return Absence.FAIL if environment.get("CI", "").lower() not in ("", "0", "false") else Absence.SKIP


@dataclass(frozen=True)
class Kind[A]:
    """A kind of service, and the three ways to it."""
