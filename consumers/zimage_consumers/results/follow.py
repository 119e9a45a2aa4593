"""Selects results, and reads them until no more are expected."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.progress import ProgressReader
from zimage_stream.kafka.reader import POLL_S, ResultReader

PROGRESS_POLL_S = 0.1
"""How often it is checked, while there is no progress, whether there are results; in seconds."""


@dataclass(frozen=True, slots=True)
class ResultFilter:
    """Criteria for results; an empty set allows any value."""

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
        """Build a filter from lists; ``None`` allows any value."""
        return ResultFilter(*(frozenset(each or ()) for each in (ids, batches, tenants, statuses)))

    def matches(self, result: ImageResult) -> bool:
        """Whether the result meets all criteria."""
        return self.may_match(result) and (not self.statuses or result.status.value in self.statuses)

    def may_match(self, event: ImageResult | Progress) -> bool:
        """Whether the request of this event meets all criteria but the status, which is known at the end."""
        pairs = (
            (self.ids, event.request_id),
            (self.batches, event.batch_id),
            (self.tenants, event.tenant),
        )
        return all(not allowed or value in allowed for allowed, value in pairs)


def follow(
    reader: ResultReader,
    wanted: ResultFilter,
    *,
    until_end: bool,
    timeout_s: float | None = None,
    progress: ProgressReader | None = None,
) -> Iterator[ImageResult | Progress]:
    """Yield matching results, and progress of requests that match, from the readers' positions on.

    Args:
        until_end: stop when every partition has been read to its end.
        timeout_s: stop after this many seconds in total; ``None``: never.
        progress: reads the progress, where that is wanted.

    Raises:
        ResultTimeoutError: ``timeout_s`` passed while some of ``wanted.ids`` were missing.
        BrokerUnavailableError: no broker responds, so the end cannot be reached, or ``timeout_s`` passed.
    """
    deadline, missing = Deadline(timeout_s), set(wanted.ids)
    while True:
        running = progress if progress is not None and progress.reads else None
        result = reader.poll(deadline.within(POLL_S) if running is None else 0.0)
        if result is None:
            event = None if running is None else running.poll(deadline.within(PROGRESS_POLL_S))
            if event is not None and wanted.may_match(event):
                yield event
            done = reader.topic.caught_up if until_end else bool(wanted.ids) and not missing
            if done or _is_late(reader, missing, deadline, until_end):
                return
        elif wanted.matches(result):
            missing.discard(result.request_id)
            yield result


def _is_late(reader: ResultReader, missing: Collection[str], deadline: Deadline, until_end: bool) -> bool:
    """Whether to stop after a poll that returned nothing. Raises as :func:`follow`."""
    # Read once: it may pass at any moment, and must then be an error where results are missing.
    passed = deadline.passed
    if reader.topic.connection_error is not None and (until_end or passed):
        raise reader.topic.connection_error
    if passed and missing:
        raise ResultTimeoutError(sorted(missing), deadline.timeout_s)
    return passed
