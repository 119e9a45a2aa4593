"""Which records are believed, against a log and a client that does what librdkafka does."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.order import STEPS, Answer, Claim, Order


@dataclass(frozen=True)
class Entry:
    """A batch of one record in the log. ``said``: the offset in it; ``None``: nothing to deliver."""

    said: int | None


def consume(log: list[Entry], per_fetch: int) -> tuple[list[int], int, list[int]]:
    """Deliver a log through an order. Returns places taken as (true place where said is right), how often the
    client was sent somewhere, and lies that were noticed."""
    order, expected, position, sent = Order(), 0, 0, 0
    taken: list[int] = []
    lies: list[int] = []
    while True:
        start = position
        if position >= len(log):
            # The client reports the end where it stands at it, and an error where it is beyond.
            if position > len(log) or (order.sought is not None and order.sought > expected):
                order.look_back(expected)
                position, sent = expected, sent + 1
                continue
            lie = order.settle(len(log))
            lies.extend(() if lie is None else (lie.offset,))
            return taken, sent, lies
        fetched = range(start, min(len(log), start + per_fetch))
        for place in fetched:
            said = log[place].said
            if said is None or said < start:
                continue
            answer, sure = order.judge(expected, Claim(said, place), len(log))
            expected = max(expected, sure)
            if answer is Answer.TAKE:
                lie = order.settle(said + 1, Claim(said, place))
                lies.extend(() if lie is None else (lie.offset,))
                taken.append(place)
                expected = said + 1
            elif answer is Answer.LOOK:
                assert order.sought is not None
                position, sent = order.sought, sent + 1
                break
            else:
                lies.append(said)
        else:
            said_last = [log[place].said for place in fetched if log[place].said is not None]
            last = said_last[-1] + 1 if said_last and said_last[-1] is not None else 0
            position = max(last, fetched[-1] + 1)


def honest(places: list[bool]) -> list[Entry]:
    return [Entry(place if there else None) for place, there in enumerate(places)]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 9))
def test_of_an_honest_log_every_record_is_taken_and_none_accused(places: list[bool], per_fetch: int) -> None:
    taken, _, lies = consume(honest(places), per_fetch)
    assert taken == [place for place, there in enumerate(places) if there]
    assert lies == []


@given(
    st.lists(st.one_of(st.none(), st.integers(-70, 70)), max_size=40),
    st.integers(1, 9),
)
def test_no_lie_costs_an_honest_record(shifts: list[int | None], per_fetch: int) -> None:
    """Of batches of one record, each with an offset of any distance from its place."""
    log = [Entry(place + (shift or 0)) for place, shift in enumerate(shifts)]
    taken, _, _ = consume(log, per_fetch)
    assert {place for place, shift in enumerate(shifts) if not shift} <= set(taken)
    assert len({log[place].said for place in taken}) == len(taken)


def test_a_long_gap_is_not_walked_through() -> None:
    taken, sent, lies = consume([Entry(0), *[Entry(None)] * 10_000, Entry(10_001)], 20_000)
    assert taken == [0, 10_001]
    assert sent <= STEPS + 2
    assert lies == []
