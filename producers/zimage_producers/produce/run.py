"""Sending many requests and gathering what comes of them, in one loop and in bounded memory."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from zimage_stream.client import PromptClient
from zimage_stream.errors import BrokerUnavailableError, RequestError, SubmitError, ZImageError
from zimage_stream.events.image_result import ImageResult, Source

from zimage_producers.produce.outstanding import Item, Outstanding

MAX_OUTSTANDING = 20_000
"""Enough for the windows of many workers; the file is read on as results come."""

MAX_IN_FLIGHT = 2_000
_POLL_S = 0.1


class Progress(Protocol):
    """Told what happens, on the thread that runs."""

    def refused(self, line: int, error: ZImageError) -> None:
        """A line is no request, or the brokers did not take it."""
        ...

    def accepted(self, item: Item) -> None:
        """The brokers have it."""
        ...

    def answered(self, item: Item, result: ImageResult) -> None:
        """Its result is here."""
        ...


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A line that asks for nothing that can be made."""

    line: int
    error: ZImageError


class SilentError(ZImageError):
    """Nothing has come for too long, or the brokers have gone; sending the input again resumes."""


def run(
    client: PromptClient,
    items: Iterable[Item | Unreadable],
    progress: Progress,
    *,
    wait: bool,
    timeout_s: float | None = None,
) -> None:
    """Send every item, and with ``wait`` stay until each has its result.

    Args:
        timeout_s: give up after so long without a sign from the brokers or the workers.

    Raises:
        BrokerUnavailableError: no broker answers.
        SilentError: it gave up; what is accepted goes on without it.
    """
    with ExitStack() as stack:
        reader = stack.enter_context(client.open_reader()) if wait else None
        limit = MAX_OUTSTANDING if wait else MAX_IN_FLIGHT
        outstanding = Outstanding()
        settled: queue.SimpleQueue[tuple[Item, Future[Source]]] = queue.SimpleQueue()
        remaining: Iterator[Item | Unreadable] | None = iter(items)
        heard_at = time.monotonic()
        silent: ZImageError | None = None

        def settle(item: Item, future: Future[Source]) -> None:
            nonlocal silent
            error = future.exception()
            if isinstance(error, SubmitError):
                outstanding.refused(item)
                progress.refused(item.line, error)
                if isinstance(error.__cause__, BrokerUnavailableError):
                    silent = error.__cause__
                return
            source = future.result()
            early = outstanding.accepted(item, source)
            progress.accepted(item)
            if early is not None:
                progress.answered(item, early)
            elif reader is None:
                outstanding.done(source)

        while (remaining is not None and silent is None) or outstanding:
            held = remaining is None or silent is not None or len(outstanding) >= limit
            if not held and remaining is not None:
                item = next(remaining, None)
                if item is None:
                    remaining = None
                else:
                    _send(client, item, outstanding, settled, progress)
            before = len(outstanding)
            for item, future in _drain(settled, _POLL_S if held and reader is None else 0.0):
                settle(item, future)
                heard_at = time.monotonic()
            result = reader.poll(_POLL_S if held else 0.0) if reader is not None else None
            answers = result and outstanding.arrived(result)
            if result and answers:
                progress.answered(answers, result)
            if len(outstanding) < before:
                heard_at = time.monotonic()
            if timeout_s is not None and time.monotonic() - heard_at > timeout_s:
                trouble = reader.topic.trouble if reader else None
                raise trouble or SilentError(
                    f"nothing came for {timeout_s:g} s; {len(outstanding)} request(s) have no result yet"
                )
        if silent is not None:
            raise silent
