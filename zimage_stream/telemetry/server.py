"""``/healthz``, ``/readyz`` and ``/metrics`` on one port."""

from __future__ import annotations

import json
import logging
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from zimage_stream.errors import SettingsError
from zimage_stream.escaping import escaped
from zimage_stream.masking import masked

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10.0
"""Time within which a client must send its request, in seconds, so that idle clients do not hold threads."""
_POLL_S = 0.1


class _Http(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # The base class looks up its own host name in the DNS, which takes seconds if there is no DNS.
        socketserver.TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            log.exception("could not serve a request for health or metrics")


class Server:
    """A server on its own thread, until it is closed; a context manager. ``port`` is the actual port."""

    def __init__(self, http: ThreadingHTTPServer) -> None:
        self._http = http
        self.port = int(http.server_address[1])
        self._thread = threading.Thread(
            target=http.serve_forever, args=(_POLL_S,), name="health", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class HealthSource(Protocol):
    """The object whose health is served."""

    def alive(self) -> bool: ...

    def ready(self) -> tuple[bool, list[str]]: ...


def serve(health: HealthSource, registry: CollectorRegistry, host: str, port: int) -> Server:
    """Start serving on a separate thread.

    Args:
        health: served by ``/healthz`` and ``/readyz``.
        registry: served by ``/metrics``.
        port: 0 means any free port.

    Raises:
        SettingsError: the host or port cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_TIMEOUT_S

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/healthz":
                alive = health.alive()
                self._answer(200 if alive else 503, {"alive": alive})
            elif path == "/readyz":
                ready, reasons = health.ready()
                shown = [masked(reason) for reason in reasons]
                self._answer(200 if ready else 503, {"ready": ready, "reasons": shown})
            elif path == "/metrics":
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._answer(404, {"error": "not found; the paths are /healthz, /readyz and /metrics"})

        def _answer(self, status: int, body: dict[str, object]) -> None:
            text = escaped(json.dumps(body, ensure_ascii=False))
            self._send(status, "application/json", text.encode() + b"\n")

        def _send(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log nothing: probes arrive every few seconds."""

    try:
        http = _Http((host, port), Handler)
    except OSError as error:
        raise SettingsError(
            f"ZIMAGE_TELEMETRY__HOST, ZIMAGE_TELEMETRY__PORT: got {host} and {port}, "
            f"which cannot be used: {error}"
        ) from error
    return Server(http)
