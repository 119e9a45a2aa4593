"""The services as containers, where a Docker daemon responds."""

from __future__ import annotations

import functools
import gc
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.services.addresses import KafkaAddress, MinioAddress, RegistryAddress, wait_until_ready
from tests.services.native import kafka as native_kafka
from tests.services.native import registry as native_registry
from tests.services.native.ports import free_ports
from zimage_stream.settings import KafkaSettings

KAFKA_IMAGE = f"apache/kafka:{native_kafka.VERSION}"
# The last image published; its server differs from the native one only by fixes.
MINIO_IMAGE = "minio/minio:RELEASE.2025-09-07T16-13-09Z"
REGISTRY_IMAGE = f"apicurio/apicurio-registry:{native_registry.VERSION}"

_PROBE_S = 2
_START_TIMEOUT_S = 90.0


@functools.cache
def docker_answers() -> bool:
    """Whether a daemon really responds; an installed command proves nothing."""
    # Imported late: it takes half a second, which a run of the unit tests need not spend.
    from testcontainers.core.docker_client import DockerClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            DockerClient(timeout=_PROBE_S).client.close()
        except Exception:  # no socket, no permission, an old daemon, a broken context: no Docker for us
            answers = False
        else:
            answers = True
        # A client that fails leaves its socket open; collected later, that would fail some other test.
        gc.collect()
    return answers


@contextmanager
def kafka() -> Iterator[KafkaAddress]:
    """A broker in a container, for the lifetime of the context.

    Raises:
        ServiceError: it does not come up.
    """
    port, controller_port = free_ports(2)
    # Clients reach the container through the published port, which has the same number inside.
    properties = native_kafka.broker_properties(port, controller_port) | {
        "listeners": f"CLIENTS://0.0.0.0:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"CLIENTS://{_host()}:{port}",
    }
    environment = {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in properties.items()}
    with _container(KAFKA_IMAGE, port, port, environment):
        address = KafkaAddress(KafkaSettings(bootstrap_servers=f"{_host()}:{port}"))
        wait_until_ready(address.probe, _START_TIMEOUT_S)
        yield address


@contextmanager
def minio() -> Iterator[MinioAddress]:
    """MinIO in a container, like :func:`kafka`."""
    (port,) = free_ports(1)
    address = MinioAddress(f"{_host()}:{port}", f"zimage-{secrets.token_hex(4)}", secrets.token_hex(16))
    environment = {
        "MINIO_ROOT_USER": address.access_key,
        "MINIO_ROOT_PASSWORD": address.secret_key,
        "MINIO_UPDATE": "off",
    }
    with _container(MINIO_IMAGE, 9000, port, environment, command=["server", "/data"]):
        wait_until_ready(address.probe, _START_TIMEOUT_S)
        yield address


@contextmanager
def registry() -> Iterator[RegistryAddress]:
    """A schema registry in a container, like :func:`kafka`."""
    (port,) = free_ports(1)
    with _container(REGISTRY_IMAGE, 8080, port, {}):
        address = RegistryAddress(f"http://{_host()}:{port}{native_registry.API}")
        wait_until_ready(address.probe, _START_TIMEOUT_S)
        yield address


@functools.cache
def _host() -> str:
    from testcontainers.core.docker_client import DockerClient

    host = DockerClient().host()
    # A port may be published for only one of the two address families that the name stands for.
    return "127.0.0.1" if host == "localhost" else host


@contextmanager
def _container(
    image: str, inside: int, outside: int, environment: Mapping[str, str], command: list[str] | None = None
) -> Iterator[None]:
    from testcontainers.core.container import DockerContainer

    container = DockerContainer(image).with_envs(**environment).with_bind_ports(inside, outside)
    with container.with_command(command) if command else container:
        yield
