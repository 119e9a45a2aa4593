"""An upstream service that embeds PromptClient, with an HTTP interface and no further dependencies.

    python service.py --port 8080
    curl -s localhost:8080/pictures -d '{"prompt": "a lighthouse in fog", "width": 64, "height": 64}'
    curl -s localhost:8080/pictures/ID

``POST /pictures`` answers 202 with the request's id once the brokers have accepted it, 400 with the field and
its rule, 429 if too many requests are unanswered, and 503 if no broker answers. ``GET /pictures/ID`` answers
200 with the result, 202 while there is none, and 404 for an id that was not requested here.
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


class Requests:
    """The requests made through this process, and their results. Thread-safe."""

    def __init__(self, client: PromptClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._unanswered: set[str] = set()
        self._answered: OrderedDict[str, ImageResult] = OrderedDict()

    def submit(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        unknown = body.keys() - FIELDS
        if unknown:
            return 400, {"error": f"unknown fields: {', '.join(sorted(unknown))}"}
        with self._lock:
            if len(self._unanswered) >= MAX_UNANSWERED:
                return 429, {"error": "too many requests are unanswered; try again later"}
        try:
            request_id = self._client.submit(PromptRequest(**{"prompt": "", **body}))
        except RequestError as error:
            return 400, {"error": str(error), "field": error.field, "rule": error.rule}
        except (UnavailableError, SubmitError) as error:
            return 503, {"error": str(error)}
        with self._lock:
            self._unanswered.add(request_id)
        return 202, {"request_id": request_id}

    def status(self, request_id: str) -> tuple[int, dict[str, Any]]:
        with self._lock:
            result, waiting = self._answered.get(request_id), request_id in self._unanswered
        if result is None and not waiting:
            return 404, {"error": "no such request"}
        if result is None:
            try:
                # Returns at once if the result has already arrived.
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


def handler_of(requests: Requests) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/pictures":
                self._answer(404, {"error": "not found; use POST /pictures or GET /pictures/ID"})
                return
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY_BYTES:
                self._answer(413, {"error": f"at most {MAX_BODY_BYTES:,} bytes"})
                return
            try:
                body = json.loads(self.rfile.read(length))
            except ValueError:
                body = None
            if isinstance(body, dict):
                self._answer(*requests.submit(body))
            else:
                self._answer(400, {"error": "the body must be a JSON object"})

        def do_GET(self) -> None:
            _, _, request_id = self.path.partition("/pictures/")
            self._answer(*requests.status(request_id))

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body, ensure_ascii=False).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Log nothing: prompts are private, and a path may contain one."""

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with PromptClient() as client:
        server = ThreadingHTTPServer((options.host, options.port), handler_of(Requests(client)))
        print(f"listening on {options.host}:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            server.server_close()


if __name__ == "__main__":
    main()
