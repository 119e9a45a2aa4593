from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from zimage_stream import BrokerUnavailableError, PromptRequest, RequestError, Source, SubmitError, Submitted
from zimage_stream.submitting import IN_FLIGHT, submit_each

PLACE = Source(topic="requests", partition=0, offset=0)


class Brokers:
    """Hold every answer back until as many are on their way as may be, then give them all."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.held: list[Future[Source]] = []
        self.most = 0

    def submit(self, request: PromptRequest) -> Future[Source]:
        if request.steps > 50:
            raise RequestError("steps", "at most 50", request.steps)
        future: Future[Source] = Future()
        self.held.append(future)
        self.most = max(self.most, len(self.held))
        if len(self.held) == IN_FLIGHT:
            self.answer()
        return future

    def answer(self) -> None:
        held, self.held = self.held, []
        for future in held:
            if self.error is None:
                future.set_result(PLACE)
            else:
                future.set_exception(self.error)


def requests(count: int, brokers: Brokers) -> Iterator[PromptRequest]:
    for number in range(count):
        yield PromptRequest(prompt="a", steps=51 if number % 100 == 0 else 8)
    brokers.answer()


def test_no_more_than_the_bound_are_on_their_way() -> None:
    brokers = Brokers()
    done = submit_each(brokers.submit, requests(10_000, brokers), lambda request, error: None)
    assert done == Submitted(accepted=9_900, failed=100)
    assert brokers.most == IN_FLIGHT


def test_failures_go_to_the_log_where_nobody_asks(caplog: pytest.LogCaptureFixture) -> None:
    brokers = Brokers()
    done = submit_each(brokers.submit, requests(1, brokers))
    assert done == Submitted(accepted=0, failed=1)
    assert "steps: got 51" in caplog.text


def test_brokers_that_take_nothing_end_it() -> None:
    refused = SubmitError("any", "nobody answers")
    refused.__cause__ = BrokerUnavailableError("Kafka does not answer")
    brokers, told = Brokers(refused), []
    with pytest.raises(BrokerUnavailableError):
        submit_each(brokers.submit, requests(50_000, brokers), lambda _, error: told.append(error))
    assert told.count(refused) == IN_FLIGHT
