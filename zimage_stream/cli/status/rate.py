"""The rate at which results arrive."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.kafka.offsets import OffsetClient
from zimage_stream.kafka.reader import ResultReader
from zimage_stream.settings import Settings

_LEAST_S = 1.0
LONGEST_S = timedelta.max.total_seconds() // 2


@dataclass(slots=True)
class Rate:
    """The recent results.

    Attributes:
        counts: number of results by status.
        first_at: when the oldest of them was completed. The rate is measured from then on; otherwise workers
            that have just started would seem slow.
        leaderless: partitions of the results topic without a leader.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first_at: datetime | None = None
    leaderless: list[int] = field(default_factory=list)

    def add(self, result: ImageResult) -> None:
        """Count a result."""
        self.counts[result.status.value] += 1
        self.first_at = min(self.first_at or result.completed_at, result.completed_at)

    def per_s(self, now: datetime) -> float:
        """Return the results per second; 0 if there are none."""
        if self.first_at is None:
            return 0.0
        return self.counts.total() / max(_LEAST_S, (now - self.first_at).total_seconds())

    def time_to_drain(self, unresolved: int, now: datetime) -> timedelta | None:
        """Return the time to resolve a number of requests at this rate; ``None`` if there are no results."""
        rate = self.per_s(now)
        if unresolved == 0:
            return timedelta()
        # A result may claim to have been completed in the year 1.
        return timedelta(seconds=min(unresolved / rate, LONGEST_S)) if rate else None


def results_since(settings: Settings, codec: Codec, since: datetime) -> Rate:
    """Count the results written since a time.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: the results topic does not exist.
    """
    logs = OffsetClient(settings.kafka).log_bounds(settings.topics.results)
    rate = Rate(leaderless=[number for number, log in logs.items() if log is None])
    ends = {number: log.end for number, log in logs.items() if log is not None}
    with ResultReader(settings.kafka, settings.topics.results, codec, patient=False) as reader:
        starts = reader.topic.offsets_at(since, ends)
        # For a partition without a record that recent, the answer is its end or -1.
        starts = {number: at if at >= 0 else ends[number] for number, at in starts.items()}
        if any(starts[number] < end for number, end in ends.items()):
            reader.topic.start(starts)
            for result in reader.read_to_end():
                rate.add(result)
    return rate
