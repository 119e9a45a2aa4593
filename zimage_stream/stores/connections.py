"""HTTP connections to a store, with bounded waits and conditional writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

CONNECT_TIMEOUT_S, TRANSFER_TIMEOUT_S = 3.0, 30.0


class _Plain(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        # Otherwise the connect timeout would also bound the sending of the whole body.
        self.sock.settimeout(TRANSFER_TIMEOUT_S)


class _Tls(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(TRANSFER_TIMEOUT_S)


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Tls


class Connections(urllib3.PoolManager):
    """A connection pool with timeouts of 3 s for connecting, and 30 s for each send and each response.

    Nothing is retried here: only the caller knows whether the request is still needed.

    Args:
        count: number of connections kept open.
        ca: file of CA certificates to trust instead of the system's.
    """

    def __init__(self, count: int, ca: Path | None = None) -> None:
        trust: dict[str, Any] = {} if ca is None else {"ca_certs": str(ca)}
        super().__init__(
            num_pools=2,
            maxsize=count,
            block=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=TRANSFER_TIMEOUT_S),
            retries=False,
            **trust,
        )
        self.pool_classes_by_scheme = {"http": _PlainPool, "https": _TlsPool}


class WriteOnceConnections(Connections):
    """Adds "only if the key has no object" to every PUT; minio-py has no parameter for that condition."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **kw: Any) -> Any:  # type: ignore[override]
        if method == "PUT":
            kw["headers"] = urllib3.HTTPHeaderDict(kw.get("headers") or {})
            kw["headers"]["If-None-Match"] = "*"
        return super().urlopen(method, url, redirect=redirect, **kw)
