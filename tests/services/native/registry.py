"""Apicurio Registry, used as a schema registry through its Confluent-compatible interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.services.addresses import RegistryAddress
from tests.services.native.cache import announce, cached
from tests.services.native.java import fetch_archive, find_java
from tests.services.native.ports import free_ports
from tests.services.native.process import NativeService, java_options

VERSION = "3.3.3"
API = "/apis/ccompat/v7"
_ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
_JAVA = 21


def prepare() -> Path:
    """The folder with the registry's program, fetched if necessary.

    Raises:
        ServiceMissingError: there is no Java 21 or no Maven, or it cannot be fetched.
    """
    # Checked first, so that 150 MB are not fetched in vain.
    find_java(_JAVA)
    return cached(f"apicurio-registry-{VERSION}", _build)


class Registry(NativeService):
    """A registry that keeps its schemas in a file, on loopback."""

    title = "Apicurio Registry"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self._management_port = free_ports(2)

    @property
    def url(self) -> str:
        """URL of the Confluent-compatible interface, the same after every restart."""
        return f"http://127.0.0.1:{self.port}{API}"

    @property
    def address(self) -> RegistryAddress:
        """Address for tests that only need to connect."""
        return RegistryAddress(self.url)

    def probe(self) -> None:
        self.address.probe()

    def _set_up(self) -> None:
        prepare()

    def _command(self) -> Sequence[str]:
        program = prepare() / "quarkus-run.jar"
        return [str(find_java(_JAVA)), *java_options(heap_mb=256), "-jar", str(program)]

    def _environment(self) -> Mapping[str, str]:
        return {
            "QUARKUS_HTTP_HOST": "127.0.0.1",
            "QUARKUS_HTTP_PORT": str(self.port),
            # This server listens on all interfaces by default.
            "QUARKUS_MANAGEMENT_HOST": "127.0.0.1",
            "QUARKUS_MANAGEMENT_PORT": str(self._management_port),
            "QUARKUS_LOG_LEVEL": "WARN",
            # Ids are kept in memory by default; a restarted registry must still have them.
            "APICURIO_STORAGE_KIND": "sql",
            "APICURIO_STORAGE_SQL_KIND": "h2",
            "APICURIO_DATASOURCE_URL": f"jdbc:h2:file:{self.folder / 'schemas'}",
        }


def _build(folder: Path) -> None:
    announce(f"Apicurio Registry {VERSION}")
    fetch_archive(_ARTIFACT, folder)
