"""Submitting many requests in bounded memory."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

from zimage_stream.errors import BrokerUnavailableError, RequestError, SubmitError, ZImageError
from zimage_stream.events.image_result import Source
from zimage_stream.events.prompt_request import PromptRequest

log = logging.getLogger(__name__)

IN_FLIGHT = 2_000

OnFailure = Callable[[PromptRequest, ZImageError], None]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The outcome of ``PromptClient.submit_many``: the numbers of accepted and failed requests."""

    accepted: int
    failed: int


def submit_each(
    submit: Callable[[PromptRequest], Future[Source]],
    requests: Iterable[PromptRequest],
    on_failure: OnFailure | None = None,
) -> Submitted:
    """Submit requests as the iterable yields them; see ``PromptClient.submit_many``."""
    sending = _SubmitLoop(submit, on_failure or _log_failure)
    for request in requests:
        while sending.in_flight and (sending.in_flight >= IN_FLIGHT or not sending.settled.empty()):
            sending.settle()
        sending.send(request)
    while sending.in_flight:
        sending.settle()
    return Submitted(sending.accepted, sending.failed)


class _SubmitLoop:
    def __init__(self, submit: Callable[[PromptRequest], Future[Source]], fail: OnFailure) -> None:
        self._submit = submit
        self._fail = fail
        self.settled: queue.SimpleQueue[tuple[PromptRequest, Future[Source]]] = queue.SimpleQueue()
        self.accepted = self.failed = self.in_flight = 0
        self._unanswered = 0

    def send(self, request: PromptRequest) -> None:
        if self._unanswered >= IN_FLIGHT:
            raise BrokerUnavailableError(f"Kafka accepted none of the last {self._unanswered:,} requests")
        try:
            future = self._submit(request)
        except (RequestError, SubmitError) as error:
            self.failed += 1
            self._fail(request, error)
            return
        self.in_flight += 1
        future.add_done_callback(lambda done: self.settled.put((request, done)))

    def settle(self) -> None:
        request, future = self.settled.get()
        self.in_flight -= 1
        error = future.exception()
        if error is None:
            self.accepted += 1
            self._unanswered = 0
            return
        self.failed += 1
        self._unanswered += isinstance(error.__cause__, BrokerUnavailableError)
        assert isinstance(error, SubmitError)
        self._fail(request, error)


def _log_failure(request: PromptRequest, error: ZImageError) -> None:
    log.warning("%s", error, extra={"request_id": request.request_id})
