"""An HTTP schema registry that answers as a test tells it."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from types import TracebackType
from typing import Any


class AnyRegistry:
    """Answers requests by path as told, and all others with 404. A context manager."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {"/schemas/types": (200, ["AVRO"])}
        """Status and JSON body by path."""
        self.asked: list[str] = []
        self._held: dict[str, threading.Event] = {}
        self._dripping: set[str] = set()
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                outer.asked.append(path)
                status, body = outer.answers.get(path, (404, {"error_code": 40403, "message": "not found"}))
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if path not in outer._dripping:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if path in outer._held:
                    outer._held[path].wait()
                if path in outer._dripping:
                    outer._drip(self.wfile)
                else:
                    with suppress(ConnectionError):
                        self.wfile.write(data)

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def put(self, schema_id: int, schema: Any, kind: str = "AVRO", **more: Any) -> None:
        """Register a schema: a text as it is, anything else as JSON."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        self.answers[f"/schemas/ids/{schema_id}"] = 200, {"schema": text, "schemaType": kind, **more}

    def fail(self, schema_id: int, status: int = 500) -> None:
        """Answer an id with an error."""
        self.answers[f"/schemas/ids/{schema_id}"] = status, {"error_code": status * 100, "message": "no"}

    def hold(self, schema_id: int) -> threading.Event:
        """Start the response for an id, and continue when the event is set."""
        return self._held.setdefault(f"/schemas/ids/{schema_id}", threading.Event())

    def drip(self, schema_id: int) -> None:
        """Send the response for an id byte by byte, without end."""
        self._dripping.add(f"/schemas/ids/{schema_id}")

    def _drip(self, out: BufferedIOBase) -> None:
        with suppress(ConnectionError):
            while not self._over.wait(0.02):
                out.write(b" ")

    def __enter__(self) -> AnyRegistry:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for event in self._held.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
