"""Which result answers which submission. Pure bookkeeping, without locks or clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from zimage_stream.events.image_result import ImageResult, Source

REMEMBERED = 65_536
KEPT = 4_096
_EARLY = 8


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
    early: list[ImageResult] = field(default_factory=list)

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
        if len(self._submissions) > self._remembered:
            self._forget(self._submissions.popitem(last=False)[1])
        return submission

    def accepted(self, submission: Submission, source: Source) -> None:
        """The broker has it."""
        submission.source = source
        early, submission.early = submission.early, []
        for result in early:
            self._note(submission, result)

    def refused(self, submission: Submission) -> None:
        """No broker said where it is. Should it be there all the same, its result is for who reads from
        ``since``: without a place it cannot be told from an older record's."""
        submission.dropped = True

    def arrived(self, result: ImageResult) -> bool:
        """Take in a result; whether it answers a submission that is remembered."""
        submission = self._submissions.get(result.request_id)
        if submission is None:
            return False
        if submission.source is None:
            # Older records with this id may have results too; the source, once known, tells.
            submission.early = [*submission.early, result][-_EARLY:]
            return False
        return self._note(submission, result)

    def _forget(self, submission: Submission) -> None:
        self._answered.pop(submission, None)
        submission.dropped = submission.result is None

    def _note(self, submission: Submission, result: ImageResult) -> bool:
        if not submission.answered_by(result):
            return False
        submission.result = result
        self._answered[submission] = None
        if len(self._answered) > self._kept:
            dropped, _ = self._answered.popitem(last=False)
            dropped.result, dropped.dropped = None, True
        return True
