"""Who is at fault when requests fail, whatever one producer sends and whatever a deployment breaks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zimage_consumers.image_worker.stages.breaker import LIMIT, LIMIT_PER_SUBJECT, Breaker, Cause
from zimage_consumers.image_worker.stages.verdict import DEPLOYMENT_CODES
from zimage_stream.events.image_result import Code

Item = tuple[Cause, int]

codes = st.sampled_from(DEPLOYMENT_CODES)
causes = st.builds(Cause, codes, st.sampled_from(["a", "b", "c"]))
FAILED, OTHER = Code.GENERATION_FAILED, Code.STORE_REJECTED


def fail(breaker: Breaker[Item], cause: Cause, requests: range) -> list[int]:
    """The requests that end, out of those that fail."""
    return [n for n in requests if not breaker.fail(cause, n, (cause, n))]


def test_if_everything_fails_only_a_limited_number_of_requests_end() -> None:
    breaker = Breaker[Item]()
    ended = [fail(breaker, Cause(FAILED, f"tenant {t}"), range(10)) for t in range(1_000)]
    assert sum(map(len, ended)) == LIMIT
    assert breaker.held_count(FAILED) == 10_000 - LIMIT


def test_fewer_requests_of_one_cause_end_so_that_others_are_still_answered() -> None:
    breaker = Breaker[Item]()
    assert len(fail(breaker, Cause(FAILED, "flood"), range(1_500))) == LIMIT_PER_SUBJECT
    assert len(fail(breaker, Cause(FAILED, "other"), range(10))) == 10


def test_a_request_that_is_sent_repeatedly_counts_once() -> None:
    breaker = Breaker[Item]()
    cause = Cause(FAILED, "loop")
    assert not any(breaker.fail(cause, "the same", (cause, n)) for n in range(1_000))
    assert len(fail(breaker, cause, range(1_000))) == LIMIT_PER_SUBJECT - 1


def test_a_success_releases_the_same_number_for_a_retry_and_resets_the_count() -> None:
    breaker = Breaker[Item]()
    flood, other = Cause(FAILED, "flood"), Cause(FAILED, "other")
    fail(breaker, flood, range(500))
    fail(breaker, other, range(60))
    again = breaker.succeed([FAILED])
    assert Counter(cause.subject for cause, _ in again) == {"flood": LIMIT_PER_SUBJECT, "other": 10}
    assert [n for cause, n in again if cause == flood] == list(range(50, 100))
    assert len(fail(breaker, flood, range(50, 100))) == LIMIT_PER_SUBJECT


def test_a_success_does_not_release_requests_with_unrelated_codes() -> None:
    breaker = Breaker[Item]()
    fail(breaker, Cause(FAILED, "a"), range(60))
    assert breaker.succeed([OTHER]) == []
    assert breaker.held_count(FAILED) == 10


@given(st.lists(st.tuples(causes, st.integers(0, 300)) | codes, max_size=400))
def test_no_request_is_lost_and_no_more_end_than_allowed(events: list[tuple[Cause, int] | Code]) -> None:
    breaker = Breaker[Item]()
    held: Counter[Item] = Counter()
    ended: dict[Code, set[Item]] = {code: set() for code in DEPLOYMENT_CODES}
    for event in events:
        if isinstance(event, Code):
            ended[event].clear()
            held.subtract(breaker.succeed([event]))
            assert min(held.values(), default=0) >= 0
            continue
        cause, request = event
        if breaker.fail(cause, request, event):
            held[event] += 1
        else:
            ended[cause.code].add(event)
        assert len(ended[cause.code]) <= LIMIT
        assert max(Counter(of for of, _ in ended[cause.code]).values(), default=0) <= LIMIT_PER_SUBJECT
    assert sum(map(breaker.held_count, DEPLOYMENT_CODES)) == held.total()
    released = Counter(item for code in DEPLOYMENT_CODES for item in breaker.release(code))
    assert released == +held
    assert sum(map(breaker.held_count, DEPLOYMENT_CODES)) == 0


@given(st.integers(1, 2_000), st.integers(1, 5), st.integers(0, 200))
def test_a_flood_of_one_producer_clears_once_enough_other_requests_succeed(
    count: int, subjects: int, before: int
) -> None:
    breaker = Breaker[Item]()
    fail(breaker, Cause(FAILED, "before"), range(before))
    for number in range(count):
        cause = Cause(FAILED, f"schema {number % subjects}")
        breaker.fail(cause, number, (cause, number))
    for _ in range((count + before) // LIMIT_PER_SUBJECT + 1):
        breaker.succeed([FAILED])
    assert breaker.held_count(FAILED) == 0


@given(st.lists(st.tuples(causes, st.integers(0, 5), st.integers(0, 300)), max_size=300), st.integers(0, 5))
def test_requests_that_belong_to_other_workers_now_are_forgotten(
    failures: list[tuple[Cause, int, int]], gone: int
) -> None:
    breaker = Breaker[tuple[int, int]]()
    held = Counter(
        (cause.code, (partition, number))
        for cause, partition, number in failures
        if breaker.fail(cause, number, (partition, number))
    )
    breaker.discard(lambda item: item[0] == gone)
    left = Counter({key: n for key, n in held.items() if key[1][0] != gone})
    assert {code: breaker.held_count(code) for code in DEPLOYMENT_CODES} == {
        code: sum(n for (of, _), n in left.items() if of is code) for code in DEPLOYMENT_CODES
    }
    assert Counter((code, item) for code in DEPLOYMENT_CODES for item in breaker.release(code)) == left
