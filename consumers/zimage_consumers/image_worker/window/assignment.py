"""A partition while this worker holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from zimage_consumers.image_worker.window.ledger import Ledger

UNKNOWN_EPOCH = -1


@dataclass(eq=False, slots=True)
class Assignment:
    """A partition from its take-over until this worker gives it up, for whatever reason. After that it is
    gone for good, and nothing begun under it counts; a partition that returns is a new assignment.

    Kafka thread only, except ``gone``, which any thread may read.

    Attributes:
        gone: the partition was given up or lost, or its offsets have become meaningless.
        count, size: number of its requests in the window, and their bytes.
        roomy: the window has room for more of its requests.
        claimed: the broker knows that this process owns it.
        settle_at: monotonic time at which to commit a base moved only by gaps in the log.
        leaving: being revoked; nothing new is started.
        refused: number of its terminal events that the brokers refused.
        stopped: not served, because its log no longer has the next offset; an operator has to decide.
        leader_epoch: epoch of the last record delivered.
        gone_back: why its offsets have become meaningless, if they have.
        informed: the cancellations that were there when it was taken over have been read. Nothing of it is
            fetched before.
        cancelled: the offsets that were cancelled and are not resolved, each with the reason given.
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
    informed: bool = False
    cancelled: dict[int, str | None] = field(default_factory=dict)

    def fill(self, filled: float) -> None:
        """Record how full its share of the window is. Once full, it has room again when half is free."""
        self.roomy = filled < (1.0 if self.roomy else 0.5)

    @property
    def fetchable(self) -> bool:
        """Whether more of its records may be fetched."""
        return self.roomy and self.informed and not (self.leaving or self.stopped or self.ledger.full)

    def enters_window(self, size: int) -> None:
        """Count a request of this many bytes."""
        self.count += 1
        self.size += size

    def leaves_window(self, size: int) -> None:
        """Discount a request of this many bytes."""
        self.count -= 1
        self.size -= size
