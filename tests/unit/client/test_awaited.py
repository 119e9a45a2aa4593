from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from zimage_stream import ImageResult, Source, Status
from zimage_stream.client.awaited import Awaited

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, eq=False)
class Asked:
    request_id: str


def source(offset: int) -> Source:
    return Source(topic="requests", partition=0, offset=offset)


def result(request_id: str, offset: int) -> ImageResult:
    return ImageResult(
        request_id=request_id, status=Status.FAILED, source=source(offset), requested_at=AT, completed_at=AT
    )


@given(count=st.integers(1, 40), ids=st.integers(1, 40), seed=st.randoms(use_true_random=False))
def test_every_request_is_answered_once_in_any_order_of_events(
    count: int, ids: int, seed: random.Random
) -> None:
    awaited: Awaited[Asked] = Awaited()
    # Some share an id, as when a file contains a row twice.
    asked = [Asked(f"r{number % ids}") for number in range(count)]
    for one in asked:
        awaited.sending(one)
    # Results of other clients, and copies of our own, arrive in between.
    events = [("accepted", n) for n in range(count)]
    events += [("result", n) for n in (*range(count), *range(count))]
    events += [("stranger", n) for n in range(1_000, 1_020)]
    seed.shuffle(events)
    answered = []
    for kind, number in events:
        if kind == "accepted":
            early = awaited.accepted(asked[number], source(number))
            if early is not None:
                assert early == result(asked[number].request_id, number)
                answered.append(number)
            continue
        request_id = asked[number].request_id if kind == "result" else "stranger"
        answers = awaited.arrived(result(request_id, number))
        if answers is not None:
            assert answers is asked[number]
            answered.append(number)
    assert sorted(answered) == list(range(count))
    assert len(awaited) == 0


def test_a_dropped_request_is_not_answered() -> None:
    awaited: Awaited[Asked] = Awaited()
    refused, placed = Asked("a"), Asked("a")
    awaited.sending(refused)
    awaited.sending(placed)
    awaited.drop(refused)
    awaited.accepted(placed, source(1))
    awaited.drop(placed)
    assert awaited.arrived(result("a", 1)) is None
    assert awaited.accepted(refused, source(0)) is None
    assert len(awaited) == 0


def test_a_result_under_another_id_answers_nothing() -> None:
    awaited: Awaited[Asked] = Awaited()
    one = Asked("a")
    awaited.sending(one)
    awaited.accepted(one, source(1))
    assert awaited.arrived(result("b", 1)) is None
    assert awaited.arrived(result("a", 1)) is one


def test_only_a_few_results_of_older_records_are_kept() -> None:
    awaited: Awaited[Asked] = Awaited()
    one = Asked("a")
    awaited.sending(one)
    for offset in range(1_000):
        awaited.arrived(result("a", offset))
    assert awaited.accepted(one, source(999)) == result("a", 999)
    again = Asked("a")
    awaited.sending(again)
    # What was kept for the previous request is not used for this one.
    assert awaited.accepted(again, source(998)) is None
    awaited.drop(again)
    awaited.sending(once_more := Asked("a"))
    for offset in range(1_000):
        awaited.arrived(result("a", offset))
    assert awaited.accepted(once_more, source(0)) is None


def test_a_request_is_found_by_its_place_while_it_is_awaited() -> None:
    awaited: Awaited[Asked] = Awaited()
    one = Asked("a")
    awaited.sending(one)
    assert awaited.find("a", source(1)) is None
    awaited.accepted(one, source(1))
    assert awaited.find("a", source(1)) is one
    assert awaited.find("b", source(1)) is None
    awaited.arrived(result("a", 1))
    assert awaited.find("a", source(1)) is None
