"""An upstream service that embeds PromptClient: HTTP in front, Kafka behind, nothing else to install.

    python service.py --port 8080
    curl -s localhost:8080/pictures -d '{"prompt": "a lighthouse in fog", "width": 64, "height": 64}'
    curl -s localhost:8080/pictures/ID

``POST /pictures`` answers 202 with the request's id once the brokers have it, 400 with the field and its
rule, 429 when this service has too much unanswered, 503 when no broker answers. ``GET /pictures/ID``
answers 200 with the result, 202 while there is none, 404 for an id that was not asked for here.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections import OrderedDict
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from zimage_stream import (
    ImageResult,
    PromptClient,
    PromptRequest,
    RequestError,
    ResultTimeoutError,
    SubmitError,
    UnavailableError,
)

MAX_BODY_BYTES = 64 << 10
MAX_UNANSWERED = 1_000
MAX_KEPT = 10_000
FIELDS = {field.name for field in fields(PromptRequest)} - {"created_at", "expires_at"}


class Pictures:
    """What was asked for through this service, in this process. Thread-safe."""

    def __init__(self, client: PromptClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._unanswered: set[str] = set()
        self._answered: OrderedDict[str, ImageResult] = OrderedDict()

    def ask(self, wanted: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        unknown = wanted.keys() - FIELDS
        if unknown:
            return 400, {"error": f"unknown fields: {', '.join(sorted(unknown))}"}
        with self._lock:
            if len(self._unanswered) >= MAX_UNANSWERED:
                return 429, {"error": "too much is unanswered, try again later"}
        try:
            request_id = self._client.submit(PromptRequest(**{"prompt": "", **wanted}))
        except RequestError as error:
            return 400, {"error": str(error), "field": error.field, "rule": error.rule}
        except (UnavailableError, SubmitError) as error:
            return 503, {"error": str(error)}
        with self._lock:
            self._unanswered.add(request_id)
        return 202, {"request_id": request_id}

    def look(self, request_id: str) -> tuple[int, dict[str, Any]]:
        with self._lock:
            result, waiting = self._answered.get(request_id), request_id in self._unanswered
        if result is None and not waiting:
            return 404, {"error": "no such request"}
        if result is None:
            try:
                # Returns at once where the result has come already.
                result = self._client.wait(request_id, timeout=0.05)
            except ResultTimeoutError:
                return 202, {"request_id": request_id, "status": None}
            except UnavailableError as error:
                return 503, {"error": str(error)}
            with self._lock:
                self._unanswered.discard(request_id)
                self._answered[request_id] = result
                if len(self._answered) > MAX_KEPT:
                    self._answered.popitem(last=False)
        answer: dict[str, Any] = {"request_id": request_id, "status": result.status}
        if result.image is not None:
            answer["image"] = result.image.url or result.image.uri
        if result.error is not None:
            answer["error"] = {"code": result.error.code, "message": result.error.message}
        return 200, answer


def handler_of(pictures: Pictures) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/pictures":
                self._answer(404, {"error": "there is POST /pictures and GET /pictures/ID"})
                return
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                self._answer(413, {"error": f"at most {MAX_BODY_BYTES:,} bytes"})
                return
            try:
                wanted = json.loads(self.rfile.read(length))
            except ValueError:
                wanted = None
            if isinstance(wanted, dict):
                self._answer(*pictures.ask(wanted))
            else:
                self._answer(400, {"error": "the body must be a JSON object"})

        def do_GET(self) -> None:
            _, _, request_id = self.path.partition("/pictures/")
            self._answer(*pictures.look(request_id))

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Prompts are nobody's business, and a path may hold one."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    asked = parser.parse_args()
    with PromptClient() as client:
        server = ThreadingHTTPServer((asked.host, asked.port), handler_of(Pictures(client)))
        print(f"listening on {asked.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    main()
