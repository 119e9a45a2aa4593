"""A misbehaving store: a proxy on loopback in front of the real store that spoils some of the exchanges."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HIT = 0.7
"""Share of the exchanges that a trouble hits. The others pass, as they would if one of several servers were
failing: whatever follows a fault, such as a canary, may find the store healthy."""
STORE_TIMEOUT_S = 60.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding"}


class Trouble(Enum):
    """What happens to an exchange.

    Attributes:
        BUSY: 503, and nothing is stored.
        FORBIDDEN: 403 for any object; nothing is stored.
        RESET: the connection is reset, and the store never sees the request.
        STALLED: held until the trouble is over, then served, even if the client has given up.
        REPLY_LOST: the object is stored, but the connection is reset instead of a reply.
        REFUSED: 400 for this one object, permanently.
    """

    BUSY = auto()
    FORBIDDEN = auto()
    RESET = auto()
    STALLED = auto()
    REPLY_LOST = auto()
    REFUSED = auto()


PASSING = tuple(trouble for trouble in Trouble if trouble is not Trouble.REFUSED)
"""Troubles that come and go."""
_ANSWERS = {
    Trouble.BUSY: (503, "SlowDown"),
    Trouble.FORBIDDEN: (403, "AccessDenied"),
    Trouble.REFUSED: (400, "InvalidArgument"),
}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    @classmethod
    def of(cls, trouble: Trouble) -> Reply:
        """A refusal in S3's format."""
        status, code = _ANSWERS[trouble]
        body = f"<Error><Code>{code}</Code><Message>the proxy plays {trouble.name}</Message></Error>"
        return cls(status, [("Content-Type", "application/xml")], body.encode())


@dataclass(frozen=True)
class _Spell:
    """A period of one trouble."""

    trouble: Trouble
    over: threading.Event = field(default_factory=threading.Event)


class MisbehavingStore:
    """Decides what each request gets. Created by :func:`open_misbehaving`.

    Args:
        address: ``host:port`` of the real store.
        refused: a PUT whose path contains this is always refused, trouble or not.
        rng: chooses which exchanges are hit.

    Attributes:
        endpoint: ``host:port`` of the proxy.
        played: number of exchanges that each trouble has spoiled.
    """

    def __init__(self, address: str, refused: str, rng: random.Random) -> None:
        self.endpoint = ""
        self._address = address
        self._refused = refused
        self._rng = rng
        self._spell: _Spell | None = None
        self._lock = threading.Lock()
        self.played: Counter[Trouble] = Counter()

    @contextmanager
    def playing(self, trouble: Trouble) -> Iterator[None]:
        """Keep up a trouble for as long as the context is open."""
        self._spell = _Spell(trouble)
        try:
            yield
        finally:
            spell, self._spell = self._spell, None
            spell.over.set()

    def reply(self, request: Request) -> Reply | None:
        """The reply: the store's, the trouble's, or ``None`` for a reset."""
        spell = self._spell
        if spell is None or self._rng.random() >= HIT:
            return self._ask(request)
        reply: Reply | None = None
        match spell.trouble:
            case Trouble.RESET:
                pass
            case Trouble.STALLED:
                spell.over.wait()
                reply = self._ask(request)
            case Trouble.REPLY_LOST:
                said = self._ask(request)
                if request.method != "PUT" or said.status != 200:
                    # Only the reply to something stored can be lost.
                    return said
            case trouble:
                reply = Reply.of(trouble)
        self._note(spell.trouble)
        return reply

    def _ask(self, request: Request) -> Reply:
        """Forward the request to the store, and return its reply."""
        if request.method == "PUT" and self._refused in request.path:
            self._note(Trouble.REFUSED)
            return Reply.of(Trouble.REFUSED)
        # A new connection each time: the store might close a kept one at the moment it is used.
        connection = http.client.HTTPConnection(self._address, timeout=STORE_TIMEOUT_S)
        try:
            # With the Host that the client sent, since its signature covers it.
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.endheaders(request.body)
            answer = connection.getresponse()
            return Reply(answer.status, answer.getheaders(), answer.read())
        finally:
            connection.close()

    def _note(self, trouble: Trouble) -> None:
        with self._lock:
            self.played[trouble] += 1


class _Connection(BaseHTTPRequestHandler):
    """A client's connection, kept open from one request to the next."""

    store: MisbehavingStore
    protocol_version = "HTTP/1.1"
    # Head and body are sent separately; the body must not wait for the head's acknowledgement.
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.store.reply(Request(self.command, self.path, self.headers.items(), body))
        if reply is None:
            self._reset()
        else:
            self._answer(reply)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _answer(self, reply: Reply) -> None:
        has_body = self.command != "HEAD"
        replaced = _HOP_BY_HOP | {"content-length"} if has_body else _HOP_BY_HOP
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in replaced:
                self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if has_body:
            self.wfile.write(reply.body)

    def _reset(self) -> None:
        # With no time to linger, closing sends a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # After a reset all clients reconnect at once.
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that end because a client is killed or the store is down."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


@contextmanager
def open_misbehaving(address: str, refused: str, rng: random.Random) -> Iterator[MisbehavingStore]:
    """A proxy that serves until the context ends; arguments as for :class:`MisbehavingStore`."""
    store = MisbehavingStore(address, refused, rng)
    with _Server(("127.0.0.1", 0), type("Connection", (_Connection,), {"store": store})) as server:
        store.endpoint = f"127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.05,), name="proxy", daemon=True).start()
        try:
            yield store
        finally:
            server.shutdown()
