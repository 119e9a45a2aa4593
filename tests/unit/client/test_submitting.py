from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from zimage_stream import BrokerUnavailableError, PromptRequest, RequestError, Source, SubmitError, Submitted
from zimage_stream.client.submitting import IN_FLIGHT, submit_each

PLACE = Source(topic="requests", partition=0, offset=0)


class Brokers:
    """Brokers that answer only once as many requests are in flight as allowed, or all have been sent."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self._changed = threading.Condition()
        self._held: list[Future[Source]] = []
        self._all_sent = False
        self.most = 0
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> Brokers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.no_more()
        self._thread.join()

    def submit(self, request: PromptRequest) -> Future[Source]:
        if request.steps > 50:
            raise RequestError("steps", "at most 50", request.steps)
        future: Future[Source] = Future()
        with self._changed:
            self._held.append(future)
            self.most = max(self.most, len(self._held))
            self._changed.notify()
        return future

    def no_more(self) -> None:
        with self._changed:
            self._all_sent = True
            self._changed.notify()

    def _answer(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._all_sent or len(self._held) >= IN_FLIGHT)
                # A sender without a limit would send more in the meantime.
                self._changed.wait(0.02)
                held, self._held = self._held, []
                if not held and self._all_sent:
                    return
            for future in held:
                if self._error is None:
                    future.set_result(PLACE)
                else:
                    future.set_exception(self._error)


def requests(count: int, brokers: Brokers) -> Iterator[PromptRequest]:
    for number in range(count):
        yield PromptRequest(prompt="a", steps=51 if number % 100 == 0 else 8)
    brokers.no_more()


def test_the_number_of_requests_in_flight_is_limited() -> None:
    with Brokers() as brokers:
        done = submit_each(brokers.submit, requests(10_000, brokers), lambda request, error: None)
    assert done == Submitted(accepted=9_900, failed=100)
    assert brokers.most == IN_FLIGHT


def test_failures_that_nobody_asks_for_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Brokers() as brokers:
        done = submit_each(brokers.submit, requests(1, brokers))
    assert done == Submitted(accepted=0, failed=1)
    assert "steps: got 51" in caplog.text


def test_submitting_ends_if_the_brokers_accept_nothing() -> None:
    refused = SubmitError("any", "nobody answers")
    refused.__cause__ = BrokerUnavailableError("Kafka does not answer")
    told: list[Exception] = []
    with Brokers(refused) as brokers, pytest.raises(BrokerUnavailableError):
        submit_each(brokers.submit, requests(50_000, brokers), lambda _, error: told.append(error))
    assert told.count(refused) == IN_FLIGHT
