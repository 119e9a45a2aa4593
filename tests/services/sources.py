"""Where a test's service comes from: an address given by the user, a container, or a plain process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from tests.services import containers
from tests.services.addresses import KafkaAddress, MinioAddress, RegistryAddress, wait_until_ready
from tests.services.errors import ServiceMissingError
from tests.services.native.kafka import Kafka
from tests.services.native.minio import Minio
from tests.services.native.registry import Registry
from zimage_stream.settings import KafkaSettings

GIVEN_KAFKA = "ZIMAGE_TEST_KAFKA"
GIVEN_MINIO = "ZIMAGE_TEST_MINIO"
GIVEN_REGISTRY = "ZIMAGE_TEST_REGISTRY"

_GIVEN_TIMEOUT_S = 60.0


class Source(Enum):
    GIVEN = "an address from the environment"
    CONTAINER = "a container"
    NATIVE = "a plain process"


class Absence(Enum):
    """What happens to a test whose service is unavailable."""

    SKIP = "skip"
    FAIL = "fail"


def choose_source(given: str | None, docker_answers: Callable[[], bool]) -> Source:
    """The first available source; Docker is only queried if no address is given."""
    if given:
        return Source.GIVEN
    return Source.CONTAINER if docker_answers() else Source.NATIVE


def on_absence(environment: Mapping[str, str]) -> Absence:
    """A developer's machine may lack a service; in CI, a test that did not run must not count as passed."""
    return Absence.FAIL if environment.get("CI", "").lower() not in ("", "0", "false") else Absence.SKIP


def kafka(environment: Mapping[str, str], folder: Path) -> AbstractContextManager[KafkaAddress]:
    """A broker, for the lifetime of the context; ``folder`` is for a native one.

    Raises:
        ServiceError: it does not start or respond.
        ServiceMissingError: there is no source for it on this machine.
    """
    return _provide(
        environment.get(GIVEN_KAFKA),
        lambda given: KafkaAddress(KafkaSettings(bootstrap_servers=given)),
        containers.kafka,
        lambda: Kafka(folder),
    )


def minio(environment: Mapping[str, str], folder: Path) -> AbstractContextManager[MinioAddress]:
    """A MinIO, like :func:`kafka`."""
    return _provide(
        environment.get(GIVEN_MINIO), MinioAddress.from_url, containers.minio, lambda: Minio(folder)
    )


def registry(environment: Mapping[str, str], folder: Path) -> AbstractContextManager[RegistryAddress]:
    """A schema registry, like :func:`kafka`."""
    return _provide(
        environment.get(GIVEN_REGISTRY), RegistryAddress, containers.registry, lambda: Registry(folder)
    )


@contextmanager
def shared(environment: Mapping[str, str], folder: Path) -> Iterator[Mapping[str, str]]:
    """All services, as variables by which other processes find them. An unavailable one is left out: the
    tests that need it report that.

    Raises:
        ServiceError: one does not start or respond.
    """
    with ExitStack() as stack:
        variables = {}
        with suppress(ServiceMissingError):
            broker = stack.enter_context(kafka(environment, folder / "kafka"))
            variables[GIVEN_KAFKA] = broker.bootstrap_servers
        with suppress(ServiceMissingError):
            variables[GIVEN_MINIO] = stack.enter_context(minio(environment, folder / "minio")).url
        with suppress(ServiceMissingError):
            variables[GIVEN_REGISTRY] = stack.enter_context(registry(environment, folder / "registry")).url
        yield variables


class _Probed(Protocol):
    def probe(self) -> None: ...


A = TypeVar("A", bound=_Probed)
A_co = TypeVar("A_co", covariant=True)


class _Served(Protocol[A_co]):
    @property
    def address(self) -> A_co: ...


@contextmanager
def _provide(
    given: str | None,
    parse: Callable[[str], A],
    container: Callable[[], AbstractContextManager[A]],
    native: Callable[[], AbstractContextManager[_Served[A]]],
) -> Iterator[A]:
    match choose_source(given, containers.docker_answers):
        case Source.GIVEN:
            address = parse(given or "")
            wait_until_ready(address.probe, _GIVEN_TIMEOUT_S)
            yield address
        case Source.CONTAINER:
            with container() as address:
                yield address
        case Source.NATIVE:
            with native() as service:
                yield service.address
