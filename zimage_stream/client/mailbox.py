"""The latest submissions and their results. Pure bookkeeping, without locks or clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from zimage_stream.client.awaited import Awaited
from zimage_stream.events.image_result import ImageResult, Source
from zimage_stream.events.progress import Progress

REMEMBERED = 65_536
KEPT = 4_096


@dataclass(slots=True, eq=False)
class Submission:
    """One submission of a request.

    Attributes:
        since: end offsets of the results topic before the submission; the result cannot lie below them.
        source: location of the record, set once the brokers have acknowledged it.
        result: the result, once it has arrived.
        at: when it was submitted.
        dropped: whether the mailbox no longer keeps the submission or its result; a caller that still needs
            the result must read the topic from ``since``.
    """

    request_id: str
    since: Mapping[int, int]
    tenant: str = "default"
    source: Source | None = None
    result: ImageResult | None = None
    dropped: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def pending(self) -> bool:
        """Whether the result may still arrive here."""
        return self.result is None and not self.dropped

    def is_subject_of(self, event: ImageResult | Progress) -> bool:
        """Whether an event is about this submission, and not about an older record with the same id."""
        return event.request_id == self.request_id and self.source in (None, event.source)


class Mailbox:
    """The latest submissions and their results. Not thread-safe.

    Args:
        remembered: maximum number of submissions; older ones are forgotten.
        kept: maximum number of results; older ones are dropped.
    """

    def __init__(self, remembered: int = REMEMBERED, kept: int = KEPT) -> None:
        self._remembered = remembered
        self._kept = kept
        self._awaited: Awaited[Submission] = Awaited()
        self._submissions: OrderedDict[str, Submission] = OrderedDict()
        self._answered: OrderedDict[Submission, None] = OrderedDict()

    def get(self, request_id: str) -> Submission | None:
        """Return the latest submission with this id, unless it has been forgotten."""
        return self._submissions.get(request_id)

    def sending(self, request_id: str, since: Mapping[int, int], tenant: str = "default") -> Submission:
        """Add a request before it is sent, because its result may be read before the acknowledgement."""
        submission = Submission(request_id, since, tenant)
        former = self._submissions.pop(request_id, None)
        if former is not None:
            self._forget(former)
        self._submissions[request_id] = submission
        self._awaited.sending(submission)
        if len(self._submissions) > self._remembered:
            self._forget(self._submissions.popitem(last=False)[1])
        return submission

    def accepted(self, submission: Submission, source: Source) -> None:
        """Note that the brokers have acknowledged a submission."""
        submission.source = source
        result = self._awaited.accepted(submission, source)
        if result is not None:
            self._keep(submission, result)

    def refused(self, submission: Submission) -> None:
        """Note that the brokers did not acknowledge a submission.

        If they stored it nevertheless, its result can only be found by reading from ``since``: without a
        location it cannot be distinguished from the result of an older record.
        """
        self._awaited.drop(submission)
        submission.dropped = True

    def arrived(self, result: ImageResult) -> bool:
        """Add a result; return whether it answers a remembered submission."""
        submission = self._awaited.arrived(result)
        if submission is not None:
            self._keep(submission, result)
        return submission is not None

    def _forget(self, submission: Submission) -> None:
        self._awaited.drop(submission)
        self._answered.pop(submission, None)
        submission.dropped = submission.result is None

    def _keep(self, submission: Submission, result: ImageResult) -> None:
        submission.result = result
        self._answered[submission] = None
        if len(self._answered) > self._kept:
            dropped, _ = self._answered.popitem(last=False)
            dropped.result, dropped.dropped = None, True
