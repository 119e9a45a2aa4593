"""The run of a batch: sends many requests and gathers their results, in one loop and with bounded memory."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from zimage_producers.produce.item import Item
from zimage_stream.client.awaited import Awaited
from zimage_stream.client.prompt_client import PromptClient
from zimage_stream.errors import BrokerUnavailableError, RequestError, SubmitError, ZImageError
from zimage_stream.events.image_result import ImageResult, Source
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.progress import ProgressReader
from zimage_stream.kafka.reader import ResultReader

MAX_OUTSTANDING = 20_000
"""Maximum number of requests without a result: enough to fill the windows of many workers."""

MAX_IN_FLIGHT = 2_000
_POLL_S = 0.1


class Observer(Protocol):
    """Callbacks for the events of a run, called on its thread."""

    def refused(self, line: int, error: ZImageError) -> None:
        """Note that a line is not a valid request, or that the brokers did not accept it."""
        ...

    def accepted(self, item: Item) -> None:
        """Note that the brokers have accepted a request."""
        ...

    @property
    def shows_running(self) -> bool:
        """Whether :meth:`running` is to be called; it costs reading the progress of all requests."""
        ...

    def running(self, item: Item, event: Progress) -> None:
        """Note how far a request has come."""
        ...

    def answered(self, item: Item, result: ImageResult) -> None:
        """Note that a result has arrived."""
        ...


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line of the input that is not a valid request."""

    line: int
    error: ZImageError


class NoResponseError(ZImageError):
    """Neither brokers nor workers have responded for too long."""


class Run:
    """One run over one input.

    Args:
        client: sends the requests.
        observer: receives the events.
        timeout_s: give up after this many seconds without a response from brokers or workers; ``None`` means
            never.
    """

    def __init__(self, client: PromptClient, observer: Observer, timeout_s: float | None = None) -> None:
        self._client = client
        self._observer = observer
        self._timeout_s = timeout_s
        self._outstanding: Awaited[Item] = Awaited()
        self._settled: queue.SimpleQueue[tuple[Item, Future[Source]]] = queue.SimpleQueue()
        self._running: ProgressReader | None = None
        self._heard_at = time.monotonic()

    def submit(self, items: Iterable[Item | InvalidLine]) -> None:
        """Send all items, and return when each has been accepted or refused.

        Raises:
            BrokerUnavailableError: no broker answers.
            NoResponseError: there was no response for ``timeout_s``.
        """
        for item in items:
            self._send(item)
            self._settle(0.0)
            while len(self._outstanding) >= MAX_IN_FLIGHT:
                self._settle(_POLL_S)
                self._check_silence()
        while self._outstanding:
            self._settle(_POLL_S)
            self._check_silence()

    def gather(self, items: Iterable[Item | InvalidLine]) -> None:
        """Send all items, and return when each has a result or has been refused.

        Raises as :meth:`submit`.
        """
        with ExitStack() as stack:
            reader = stack.enter_context(self._client.open_reader())
            if self._observer.shows_running:
                self._running = stack.enter_context(self._client.open_progress_reader())
            for item in items:
                self._send(item)
                self._read(reader, 0.0)
                while len(self._outstanding) >= MAX_OUTSTANDING:
                    self._read(reader, _POLL_S)
                    self._check_silence(reader)
            while self._outstanding:
                self._read(reader, _POLL_S)
                self._check_silence(reader)

    def _send(self, item: Item | InvalidLine) -> None:
        self._heard_at = time.monotonic()
        if isinstance(item, InvalidLine):
            self._observer.refused(item.line, item.error)
            return
        self._outstanding.sending(item)
        try:
            future = self._client.submit_nowait(item.request)
        except (RequestError, SubmitError) as error:
            self._outstanding.drop(item)
            self._observer.refused(item.line, error)
        else:
            future.add_done_callback(lambda done: self._settled.put((item, done)))

    def _settle(self, wait_s: float, reader: ResultReader | None = None) -> None:
        """Process the available acknowledgements, waiting up to ``wait_s`` seconds for the first."""
        try:
            while True:
                item, future = self._settled.get(timeout=wait_s) if wait_s else self._settled.get_nowait()
                self._heard_at, wait_s = time.monotonic(), 0.0
                error = future.exception()
                if isinstance(error, SubmitError):
                    self._outstanding.drop(item)
                    self._observer.refused(item.line, error)
                    if isinstance(error.__cause__, BrokerUnavailableError):
                        raise error.__cause__
                    continue
                result = self._outstanding.accepted(item, future.result())
                if reader is None:
                    self._outstanding.drop(item)
                self._observer.accepted(item)
                if result is not None:
                    self._observer.answered(item, result)
        except queue.Empty:
            return

    def _read(self, reader: ResultReader, wait_s: float) -> None:
        self._settle(0.0, reader)
        running = self._running if self._running is not None and self._running.reads else None
        result = reader.poll(wait_s if running is None else 0.0)
        item = result and self._outstanding.arrived(result)
        if result and item:
            self._heard_at = time.monotonic()
            self._observer.answered(item, result)
        elif running is not None:
            self._show_running(running.poll(wait_s), reader)

    def _show_running(self, event: Progress | None, reader: ResultReader) -> None:
        # Else the event's request may not be known to be ours yet.
        self._settle(0.0, reader)
        item = event and self._outstanding.find(event.request_id, event.source)
        if event and item:
            self._heard_at = time.monotonic()
            self._observer.running(item, event)

    def _check_silence(self, reader: ResultReader | None = None) -> None:
        if self._timeout_s is None or time.monotonic() - self._heard_at < self._timeout_s:
            return
        if reader is not None and reader.topic.connection_error is not None:
            raise reader.topic.connection_error
        left = len(self._outstanding)
        raise NoResponseError(f"no response for {self._timeout_s:g} s; {left:,} request(s) are unanswered")
