"""Which results to show, and reading until there are no more of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from zimage_stream.errors import ResultTimeoutError
from zimage_stream.events.image_result import ImageResult
from zimage_stream.kafka.reader import ResultReader

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Wanted:
    """What results must be; an empty set allows any."""

    ids: frozenset[str] = frozenset()
    batches: frozenset[str] = frozenset()
    tenants: frozenset[str] = frozenset()
    statuses: frozenset[str] = frozenset()

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
    reader: ResultReader, wanted: Wanted, *, until_end: bool, timeout_s: float | None = None
) -> Iterator[ImageResult]:
    """Matching results from where the reader stands.

    Args:
        until_end: end when every partition has been read to its end.
        timeout_s: end after so many seconds in all; absent: never.

    Raises:
        ResultTimeoutError: ``timeout_s`` passed, and some of ``wanted.ids`` have not come.
        BrokerUnavailableError: no broker answers, and the end or ``timeout_s`` was to be reached.
    """
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    missing = set(wanted.ids)
    while True:
        result = reader.poll(max(0.0, min(_POLL_S, deadline - time.monotonic())))
        if result is not None:
            if wanted.matches(result):
                missing.discard(result.request_id)
                yield result
            continue
        if until_end and reader.topic.caught_up:
            return
        if wanted.ids and not missing and not until_end:
            return
        late = time.monotonic() >= deadline
        if (late or until_end) and reader.topic.trouble is not None:
            raise reader.topic.trouble
        if late:
            if missing:
                raise ResultTimeoutError(sorted(missing), timeout_s or 0)
            return
