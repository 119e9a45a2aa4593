"""MinIO on one folder."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.services.addresses import MinioAddress
from tests.services.native.cache import announce, cached, run_tool
from tests.services.native.ports import free_ports
from tests.services.native.process import NativeService

# MinIO no longer publishes programs or images; this is its last released source.
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"


def prepare() -> Path:
    """The MinIO program, built if necessary (takes minutes).

    Raises:
        ServiceMissingError: Go is not installed, or cannot build it.
    """
    return cached(f"minio-{VERSION}", _build) / "minio"


class Minio(NativeService):
    """A store on loopback with random root credentials.

    Attributes:
        access_key, secret_key: credentials of its root user.
    """

    title = "MinIO"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self._console_port = free_ports(2)
        self.access_key = f"zimage-{secrets.token_hex(4)}"
        self.secret_key = secrets.token_hex(16)

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:port``, the same after every restart."""
        return f"127.0.0.1:{self.port}"

    @property
    def address(self) -> MinioAddress:
        """Address for tests that only need to connect."""
        return MinioAddress(self.endpoint, self.access_key, self.secret_key)

    def probe(self) -> None:
        self.address.probe()

    def _set_up(self) -> None:
        prepare()
        (self.folder / "data").mkdir()

    def _command(self) -> Sequence[str]:
        return [
            str(prepare()),
            "server",
            f"--address={self.endpoint}",
            f"--console-address=127.0.0.1:{self._console_port}",
            # Otherwise it reads and writes a folder in the user's home.
            f"--certs-dir={self.folder / 'certs'}",
            str(self.folder / "data"),
        ]

    def _environment(self) -> Mapping[str, str]:
        return {
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
            # It would check the vendor for a newer version at every start.
            "MINIO_UPDATE": "off",
        }


def _build(folder: Path) -> None:
    announce(f"MinIO {VERSION}")
    run_tool(["go", "install", f"github.com/minio/minio@{VERSION}"], folder, {"GOBIN": str(folder)})
