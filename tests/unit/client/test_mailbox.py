from __future__ import annotations

from datetime import UTC, datetime

import hypothesis.strategies as st
from hypothesis import given

from zimage_stream import ImageResult, Source, Status
from zimage_stream.client.mailbox import Mailbox

AT = datetime(2026, 1, 1, tzinfo=UTC)


def source(offset: int) -> Source:
    return Source(topic="requests", partition=0, offset=offset)


def result(request_id: str, offset: int) -> ImageResult:
    return ImageResult(
        request_id=request_id,
        status=Status.FAILED,
        source=source(offset),
        requested_at=AT,
        completed_at=AT,
    )


def test_the_result_of_an_older_record_is_ignored() -> None:
    mailbox = Mailbox()
    submission = mailbox.sending("a", {})
    mailbox.accepted(submission, source(7))
    assert not mailbox.arrived(result("a", 3))
    assert submission.pending
    assert mailbox.arrived(result("a", 7))
    assert submission.result == result("a", 7)


def test_a_result_may_arrive_before_the_brokers_acknowledgement() -> None:
    mailbox = Mailbox()
    submission = mailbox.sending("a", {})
    mailbox.arrived(result("a", 3))
    mailbox.arrived(result("a", 7))
    assert submission.pending
    mailbox.accepted(submission, source(7))
    assert submission.result == result("a", 7)


def test_a_request_sent_again_waits_for_its_own_result() -> None:
    mailbox = Mailbox()
    first = mailbox.sending("a", {})
    mailbox.accepted(first, source(1))
    second = mailbox.sending("a", {})
    mailbox.accepted(second, source(2))
    mailbox.arrived(result("a", 1))
    assert first.dropped
    assert second.pending


@given(
    remembered=st.integers(1, 20),
    kept=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200),
)
def test_its_size_is_bounded_and_nothing_is_lost_silently(
    remembered: int, kept: int, steps: list[tuple[int, bool]]
) -> None:
    mailbox = Mailbox(remembered, kept)
    submissions = []
    for offset, (number, answered) in enumerate(steps):
        submission = mailbox.sending(f"r{number}", {})
        mailbox.accepted(submission, source(offset))
        if answered:
            assert mailbox.arrived(result(submission.request_id, offset))
        submissions.append((submission, offset, answered))
    held = [one for one, _, _ in submissions if mailbox.get(one.request_id) is one]
    assert len(held) <= remembered
    assert sum(one.result is not None for one in held) <= kept
    for submission, offset, answered in submissions:
        if submission.result is not None:
            assert submission.result.source == source(offset)
        elif answered:
            # Whoever waits for it must be told to search for it.
            assert submission.dropped
        elif mailbox.get(submission.request_id) is not submission:
            assert submission.dropped
