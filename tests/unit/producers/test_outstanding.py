from __future__ import annotations

import random
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from zimage_producers.produce.outstanding import Item, Outstanding
from zimage_stream import ImageResult, PromptRequest, Source, Status

AT = datetime(2026, 1, 1, tzinfo=UTC)


def source(offset: int) -> Source:
    return Source(topic="requests", partition=0, offset=offset)


def result(offset: int) -> ImageResult:
    return ImageResult(
        request_id="any", status=Status.FAILED, source=source(offset), requested_at=AT, completed_at=AT
    )


@given(count=st.integers(1, 40), seed=st.randoms(use_true_random=False))
def test_every_item_is_answered_once_in_whatever_order_things_come(count: int, seed: random.Random) -> None:
    outstanding = Outstanding()
    items = [Item(line, PromptRequest(prompt="a")) for line in range(count)]
    for item in items:
        outstanding.sending(item)
    # Strangers' results, and copies of our own, come in between.
    events = [("accepted", n) for n in range(count)]
    events += [("result", n) for n in (*range(count), *range(count), *range(1_000, 1_020))]
    seed.shuffle(events)
    answered = []
    for kind, number in events:
        if kind == "accepted":
            early = outstanding.accepted(items[number], source(number), answer_follows=True)
            if early is not None:
                assert early.source == source(number)
                answered.append(number)
        elif (answers := outstanding.arrived(result(number))) is not None:
            assert answers is items[number]
            answered.append(number)
    assert sorted(answered) == list(range(count))
    assert len(outstanding) == 0


def test_a_refused_item_has_no_answer() -> None:
    outstanding = Outstanding()
    item = Item(1, PromptRequest(prompt="a"))
    outstanding.sending(item)
    outstanding.refused(item)
    assert len(outstanding) == 0


def test_without_waiting_an_accepted_item_is_done() -> None:
    outstanding = Outstanding()
    item = Item(1, PromptRequest(prompt="a"))
    outstanding.sending(item)
    assert outstanding.accepted(item, source(1), answer_follows=False) is None
    assert len(outstanding) == 0
