"""Which results to show, and reading until there are no more of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError
from zimage_stream.events.image_result import ImageResult
from zimage_stream.kafka.reader import POLL_S, ResultReader


@dataclass(frozen=True, slots=True)
class ResultFilter:
    """What results must be; an empty set allows any."""

    ids: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    statuses: frozenset[str] = frozenset()

    @staticmethod
    def of(
        ids: Iterable[str] | None,
        batches: Iterable[str] | None,
        tenants: Iterable[str] | None,
        statuses: Iterable[str] | None,
    ) -> ResultFilter:
        """What is in these; ``None`` allows any."""
        return ResultFilter(*(frozenset(each or ()) for each in (ids, batches, tenants, statuses)))

    def matches(self, result: ImageResult) -> bool:
        """Whether the result is one of them."""
        pairs = (
            (self.ids, result.request_id),
            (self.batches, result.batch_id),
            (self.tenants, result.tenant),
            (self.statuses, result.status.value),
        )
        return all(not allowed or value in allowed for allowed, value in pairs)


def follow(
    reader: ResultReader, wanted: ResultFilter, *, until_end: bool, timeout_s: float | None = None
) -> Iterator[ImageResult]:
    """Matching results from where the reader stands.

    Args:
        until_end: end when every partition has been read to its end.
        timeout_s: end after so many seconds in all; absent: never.

    Raises:
        ResultTimeoutError: ``timeout_s`` passed, and some of ``wanted.ids`` have not come.
        BrokerUnavailableError: no broker answers, and the end or ``timeout_s`` was to be reached.
    """
    deadline, missing = Deadline(timeout_s), set(wanted.ids)
    while True:
        result = reader.poll(deadline.within(POLL_S))
        if result is None:
            done = reader.topic.caught_up if until_end else bool(wanted.ids) and not missing
            if done or _is_late(reader, missing, deadline, until_end):
                return
        elif wanted.matches(result):
            missing.discard(result.request_id)
            yield result


def _is_late(reader: ResultReader, missing: Collection[str], deadline: Deadline, until_end: bool) -> bool:
    """Whether nothing more is waited for, where nothing has come. Raises as :func:`follow`."""
    if reader.topic.trouble is not None and (until_end or deadline.passed):
        raise reader.topic.trouble
    if deadline.passed and missing:
        raise ResultTimeoutError(sorted(missing), deadline.timeout_s)
    return deadline.passed
