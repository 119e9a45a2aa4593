"""A partition while it is ours."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zimage_consumers.image_worker.window.ledger import Ledger

UNKNOWN_EPOCH = -1


@dataclass(eq=False, slots=True)
class Assignment:
    """A partition from its take-over until it is given up, for whatever reason; then it is gone for good, and
    nothing that was begun under it counts any more. A partition that comes back is another assignment.

    Kafka thread only, but for ``gone``, which any thread may read.

    Attributes:
        gone: the partition was given up, lost, or its offsets mean nothing any more.
        count, size: requests of it in the window, and their bytes.
        roomy: the window has room for more of it.
        claimed: the broker knows that this process has it.
        settle_at: monotonic time from which a base that gaps in the log have moved is to be committed.
        leaving: being revoked; nothing new is started.
        refused: terminal events of it that the brokers do not take.
        stopped: the log no longer has what is next; the operator decides.
        leader_epoch: of the last record that was taken.
        gone_back: why its offsets mean nothing any more, if they do not.
    """

    number: int
    ledger: Ledger
    gone: bool = False
    count: int = 0
    size: int = 0
    roomy: bool = True
    claimed: bool = False
    settle_at: float = math.inf
    leaving: bool = False
    refused: int = 0
    stopped: bool = False
    leader_epoch: int = UNKNOWN_EPOCH
    gone_back: str | None = None

    def fill(self, filled: float) -> None:
        """Note how much of its share of the window it has: with all of it there is room again at half."""
        self.roomy = filled < (1.0 if self.roomy else 0.5)

    @property
    def fetchable(self) -> bool:
        """Whether more of it may be fetched."""
        return self.roomy and not (self.leaving or self.stopped or self.ledger.full)

    def enters_window(self, size: int) -> None:
        """A request of so many bytes is kept."""
        self.count += 1
        self.size += size

    def leaves_window(self, size: int) -> None:
        """It is kept no more."""
        self.count -= 1
        self.size -= size
