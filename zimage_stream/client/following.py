"""Following the progress of requests until they have results."""

from __future__ import annotations

from collections.abc import Iterator

from zimage_stream.client.mailbox import Submission
from zimage_stream.deadline import Deadline
from zimage_stream.errors import ResultTimeoutError
from zimage_stream.events.image_result import ImageResult
from zimage_stream.events.progress import Progress
from zimage_stream.kafka.progress import ProgressReader
from zimage_stream.kafka.reader import POLL_S, ResultReader

PROGRESS_POLL_S = 0.1
"""How often it is checked, while there is no progress, whether there are results; in seconds."""


def follow_progress(
    wanted: dict[str, Submission | None], results: ResultReader, progress: ProgressReader, deadline: Deadline
) -> Iterator[Progress]:
    """Yield the progress of requests until each has its result.

    Args:
        wanted: the requests by id; those that have their results are removed. ``None`` where the submission
            is unknown, so that the first result with the id counts.

    Raises:
        ResultTimeoutError: results are missing at the deadline.
        BrokerUnavailableError: no broker answered before the deadline.
        TopicMissingError, RegistryUnavailableError: the results cannot be read.
    """
    while wanted:
        event = progress.poll(deadline.within(PROGRESS_POLL_S), wanted)
        if event is not None and _is_wanted(event, wanted):
            yield event
        result = results.poll(0.0 if progress.reads else deadline.within(POLL_S))
        while result is not None:
            if _is_wanted(result, wanted):
                del wanted[result.request_id]
            result = results.poll(0.0)
        if wanted and deadline.passed:
            raise results.topic.connection_error or ResultTimeoutError(wanted, deadline.timeout_s)


def _is_wanted(event: Progress | ImageResult, wanted: dict[str, Submission | None]) -> bool:
    if event.request_id not in wanted:
        return False
    submission = wanted[event.request_id]
    return submission is None or submission.is_subject_of(event)
