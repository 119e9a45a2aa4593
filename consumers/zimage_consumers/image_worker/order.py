"""Whether a record lies where it says.

In a batch that is not compressed each record has the offset that its producer wrote into it; the brokers
check the batch alone. So a record may say a place far ahead, and to believe it would pass over the requests
between; or one that was had already. The client believes it, too, and goes on fetching behind that place.

What a record says is believed at once only where it is the next offset. Where offsets are missing before it,
which is so after every transaction, the client is sent to the first of them: what a fetch from an offset
delivers first is that offset, or there is no honest record of it. A long gap is not walked through to its
end. After some steps the client is sent to the place that was said, and a record is believed that is there,
too, word by word. Batches of many records can be shifted so that this does not see it; brokers that compress
a topic themselves write its offsets themselves, and let none through.

Pure: values in, values out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

STEPS = 4
"""Missing offsets that are looked for one by one. Each costs a fetch, of up to ``fetch.wait.max.ms``."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Where a record says that it lies.

    Attributes:
        content: the rest of it, or its hash: another record's is another one.
    """

    offset: int
    content: int


class Answer(Enum):
    """What to do with a record."""

    TAKE = auto()
    DROP = auto()
    """It lies: its offset was delivered already, or is known to be none."""
    LOOK = auto()
    """The client is to fetch from ``Order.sought``; the record comes again if it is honest."""


@dataclass(slots=True)
class Order:
    """What is in doubt of one partition.

    Attributes:
        sought: where the client was sent; nothing has come since.
        claim: of the record that came instead of one that is missing.
        empty: so many offsets were sought and are none, in a row.
        lied: the claim is known to be wrong.
    """

    sought: int | None = None
    claim: Claim | None = None
    empty: int = 0
    lied: bool = False

    def judge(self, expected: int, said: Claim, end: int) -> tuple[Answer, int]:
        """What to do with the record that was delivered, and up to where no honest record is missing.

        Args:
            expected: the offset behind the one that was taken last.
            end: of the log, as the last fetch was told.
        """
        if said.offset < expected:
            return Answer.DROP, expected
        if said.offset == expected:
            return Answer.TAKE, expected
        if self.sought is None:
            self.sought, self.claim, self.empty, self.lied = expected, said, 0, False
            return Answer.LOOK, expected
        if self.sought > expected:
            if said == self.claim:
                return Answer.TAKE, said.offset
            self.look_back(expected)
            return Answer.LOOK, expected
        # Sent to the offset that is missing, and it is not there.
        self.empty += 1
        self.sought, self.claim = expected + 1, said
        if self.empty >= STEPS and said.offset < end and not self.lied:
            self.sought = said.offset
        return Answer.LOOK, expected + 1

    def look_back(self, expected: int) -> None:
        """What was claimed is not at its place: go on where offsets are missing."""
        self.sought, self.lied = expected, True

    def settle(self, reached: int, taken: Claim | None = None) -> Claim | None:
        """The log is honest up to here, so nothing is in doubt. Returns a claim that was a lie.

        Args:
            taken: the last record before ``reached``, if it was taken.
        """
        claim = self.claim
        self.sought, self.claim, self.empty, self.lied = None, None, 0, False
        if claim is None or claim == taken:
            return None
        return claim if claim.offset >= reached or (taken and claim.offset == taken.offset) else None
