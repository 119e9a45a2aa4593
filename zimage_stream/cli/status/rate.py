"""How fast results come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from zimage_stream.events.codec import Codec
from zimage_stream.events.image_result import ImageResult
from zimage_stream.kafka.offsets import Offsets
from zimage_stream.kafka.reader import ResultReader
from zimage_stream.settings import Settings

_LEAST_S = 1.0
LONGEST_S = timedelta.max.total_seconds() // 2


@dataclass(slots=True)
class Rate:
    """Results of the last while.

    Attributes:
        counts: by status.
        first_at: when the oldest of them was completed; a rate counts from there, or workers that have
            just begun would seem slow.
        leaderless: partitions of the results topic that nobody can read now.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first_at: datetime | None = None
    leaderless: list[int] = field(default_factory=list)

    def add(self, result: ImageResult) -> None:
        """One more."""
        self.counts[result.status.value] += 1
        self.first_at = min(self.first_at or result.completed_at, result.completed_at)

    def per_s(self, now: datetime) -> float:
        """Results a second; 0 where there are none."""
        if self.first_at is None:
            return 0.0
        return self.counts.total() / max(_LEAST_S, (now - self.first_at).total_seconds())

    def time_to_drain(self, unresolved: int, now: datetime) -> timedelta | None:
        """How long so many last at this rate; ``None`` where nothing moves."""
        rate = self.per_s(now)
        if unresolved == 0:
            return timedelta()
        # A result can say that it was completed in the year 1.
        return timedelta(seconds=min(unresolved / rate, LONGEST_S)) if rate else None


def results_since(settings: Settings, codec: Codec, since: datetime) -> Rate:
    """Results written since then.

    Raises:
        BrokerUnavailableError: no broker answers.
        TopicMissingError: there is no results topic.
    """
    logs = Offsets(settings.kafka).logs(settings.topics.results)
    rate = Rate(leaderless=[number for number, log in logs.items() if log is None])
    ends = {number: log.end for number, log in logs.items() if log is not None}
    with ResultReader(settings.kafka, settings.topics.results, codec, patient=False) as reader:
        starts = reader.topic.offsets_at(since, ends)
        # A partition without a record that young is answered with its end, or with -1.
        starts = {number: at if at >= 0 else ends[number] for number, at in starts.items()}
        if any(starts[number] < end for number, end in ends.items()):
            reader.topic.start(starts)
            for result in reader.read_to_end():
                rate.add(result)
    return rate
