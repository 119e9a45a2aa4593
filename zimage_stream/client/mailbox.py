"""The latest submissions and their results. Pure bookkeeping, without locks or clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from zimage_stream.client.awaited import Awaited
from zimage_stream.events.image_result import ImageResult, Source

REMEMBERED = 65_536
KEPT = 4_096


@dataclass(slots=True, eq=False)
class Submission:
    """One sending of a request.

    ``since``: offsets in the results topic from before the sending, so that its result cannot lie
    below them. ``source`` is set once the broker has the record. ``dropped``: the mailbox has no room
    for it, or for its result, any more; whoever still wants that reads from ``since``.
    """

    request_id: str
    since: Mapping[int, int]
    source: Source | None = None
    result: ImageResult | None = None
    dropped: bool = False

    @property
    def pending(self) -> bool:
        """Whether its result may still be put here."""
        return self.result is None and not self.dropped

    def answered_by(self, result: ImageResult) -> bool:
        """Whether a result answers this sending, and not an older record with the same id."""
        return result.request_id == self.request_id and self.source in (None, result.source)


class Mailbox:
    """The latest submissions, and the results that came for them. Not thread-safe.

    Bounded: it forgets the submissions before the latest ``remembered``, and drops the results
    before the latest ``kept``.
    """

    def __init__(self, remembered: int = REMEMBERED, kept: int = KEPT) -> None:
        self._remembered = remembered
        self._kept = kept
        self._awaited: Awaited[Submission] = Awaited()
        self._submissions: OrderedDict[str, Submission] = OrderedDict()
        self._answered: OrderedDict[Submission, None] = OrderedDict()

    def get(self, request_id: str) -> Submission | None:
        """The latest submission under this id, unless it is forgotten."""
        return self._submissions.get(request_id)

    def sending(self, request_id: str, since: Mapping[int, int]) -> Submission:
        """Note a request before it is sent: its result may be read before the broker's answer is."""
        submission = Submission(request_id, since)
        former = self._submissions.pop(request_id, None)
        if former is not None:
            self._forget(former)
        self._submissions[request_id] = submission
        self._awaited.sending(submission)
        if len(self._submissions) > self._remembered:
            self._forget(self._submissions.popitem(last=False)[1])
        return submission

    def accepted(self, submission: Submission, source: Source) -> None:
        """The broker has it."""
        submission.source = source
        result = self._awaited.accepted(submission, source)
        if result is not None:
            self._keep(submission, result)

    def refused(self, submission: Submission) -> None:
        """No broker said where it is. Should it be there all the same, its result is for who reads from
        ``since``: without a place it cannot be told from an older record's."""
        self._awaited.drop(submission)
        submission.dropped = True

    def arrived(self, result: ImageResult) -> bool:
        """Take in a result; whether it answers a submission that is remembered."""
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
